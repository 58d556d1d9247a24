import { once } from 'node:events'
import { connect, createServer, type Socket } from 'node:net'
import { endianness } from 'node:os'
import { describe, expect, onTestFinished, test } from 'vitest'
import { isOwnConnection, ownerIn } from '../../../../node/api/connection-owner.ts'
import type { ConnectionEnds } from '../../../../node/api/connection-owner.ts'

const HEAD =
  '  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode'
const row = (local: string, remote: string, uid: number, state = '01'): string =>
  `   1: ${local} ${remote} ${state} 00000000:00000000 00:00000000 00000000  ${uid}        0 5 1 0 20 4 30 10 -1`
const ends: ConnectionEnds = {
  own: { host: '127.0.0.1', port: 0x0fab },
  other: { host: '127.0.0.1', port: 0xd431 },
}
const atPort = (port: number): ConnectionEnds => ({ ...ends, other: { ...ends.other, port } })

describe.skipIf(endianness() !== 'LE')('a table of sockets', () => {
  test('tells the owner of the other end, and not that of this one', () => {
    const table = [
      HEAD,
      row('0100007F:0FAB', '00000000:0000', 1000, '0A'),
      row('0100007F:0FAB', '0100007F:D431', 1000),
      row('0100007F:D431', '0100007F:0FAB', 1001),
      row('0100007F:D431', '0100007F:0050', 1002),
      '',
    ].join('\n')
    expect(ownerIn(table, ends)).toBe(1001)
    expect(ownerIn(table, atPort(0xd432))).toBe(undefined)
  })

  test('names the other end by its mapped address too', () => {
    const mapped = '0000000000000000FFFF00000100007F'
    expect(ownerIn(row(`${mapped}:D431`, `${mapped}:0FAB`, 1002), ends)).toBe(1002)
  })

  test('has sockets with the same ports at other addresses, which are not asked for', () => {
    const table = [
      HEAD,
      row('0200007F:D431', '0100007F:0FAB', 1001),
      row('0100007F:D431', '0200007F:0FAB', 1002),
      row('00000000000000000000000001000000:D431', '0100007F:0FAB', 1003),
    ].join('\n')
    expect(ownerIn(table, ends)).toBe(undefined)
  })

  test('says that a closed socket is of root, which is not believed', () => {
    for (const state of ['04', '05', '06', '08']) {
      expect(ownerIn(row('0100007F:D431', '0100007F:0FAB', 0, state), ends)).toBe(undefined)
    }
  })

  test('may be none at all', () => {
    for (const text of ['', 'x', HEAD, '1: 2 3', ':: :: ::']) {
      expect(ownerIn(text, ends)).toBe(undefined)
    }
  })
})

describe.skipIf(process.platform !== 'linux')('a connection', () => {
  async function connected(): Promise<{ client: Socket; server: Socket; ends: ConnectionEnds }> {
    const listening = createServer({ allowHalfOpen: true }).listen(0, '127.0.0.1')
    const accepted = once(listening, 'connection')
    await once(listening, 'listening')
    const bound = listening.address()
    const port = typeof bound === 'object' && bound !== null ? bound.port : 0
    const client = connect(port, '127.0.0.1')
    const [server]: Socket[] = await accepted
    if (server === undefined) throw new Error('no connection')
    server.on('error', () => {})
    server.resume()
    onTestFinished(() => {
      client.destroy()
      server.destroy()
      listening.close()
    })
    const other = { host: '127.0.0.1', port: server.remotePort ?? 0 }
    return { client, server, ends: { own: { host: '127.0.0.1', port }, other } }
  }

  test('is of who holds its other end, until that is closed', async () => {
    const { client, server, ends: real } = await connected()
    expect(await isOwnConnection(real)).toBe(true)
    const ended = once(server, 'end')
    client.destroy()
    await ended
    expect(await isOwnConnection(real)).toBe(false)
  })

  test('that is reset, or never was, is nobody’s', async () => {
    const { client, server, ends: real } = await connected()
    const closed = new Promise((resolve) => server.once('close', resolve))
    client.resetAndDestroy()
    await closed
    expect(await isOwnConnection(real)).toBe(false)
    expect(await isOwnConnection({ ...real, other: { host: '', port: 0 } })).toBe(false)
  })
})
