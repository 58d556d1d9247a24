/** The TLS encrypter on real sockets, beside stock js-libp2p, and against peers that break the protocol. */
import { createConnection, Socket } from 'node:net'
import { connect as connectTls } from 'node:tls'
import type { SecureContextOptions } from 'node:tls'
import type { Connection, Libp2p, Stream } from '@libp2p/interface'
import { memory } from '@libp2p/memory'
import { noise } from '@libp2p/noise'
import { tcp } from '@libp2p/tcp'
import { tls as stockTls } from '@libp2p/tls'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import type { Libp2pOptions } from 'libp2p'
import { describe, expect, onTestFinished, test } from 'vitest'
import { nodeEncrypters, tls } from '../../../../node/net/tls.ts'
import { createCertificate } from '../../../../node/net/tls-certificate.ts'
import { systemClock } from '../../../../src/clock.ts'
import type { Clock } from '../../../../src/clock.ts'
import { createIdentity } from '../../../../src/net/identity.ts'
import type { EncrypterFactories } from '../../../../src/net/libp2p-node.ts'
import { createRecorder, freshAddress, until } from '../../net/memory-network.ts'

const ECHO = '/echo/1'

async function startLibp2p(
  connectionEncrypters: EncrypterFactories,
  options: Libp2pOptions = {},
): Promise<Libp2p> {
  const node = await createLibp2p({
    addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
    transports: [tcp()],
    connectionEncrypters,
    streamMuxers: [yamux()],
    connectionMonitor: { enabled: false },
    connectionManager: { inboundConnectionThreshold: 100 },
    ...options,
  })
  onTestFinished(() => node.stop())
  await node.handle(ECHO, (stream) => {
    stream.addEventListener('message', ({ data }) => void stream.send(data))
  })
  return node
}

async function dial(from: Libp2p, to: Libp2p): Promise<Connection> {
  const [address] = to.getMultiaddrs()
  if (address === undefined) throw new Error('it listens nowhere')
  return from.dial(address)
}

async function expectEcho(connection: Connection, bytes: number): Promise<void> {
  const stream = await connection.newStream(ECHO)
  const sent = new Uint8Array(bytes).map((_, index) => (index * 31) % 251)
  let received = 0
  const back = new Promise<void>((resolve, reject) => {
    stream.addEventListener('message', ({ data }) => {
      for (const byte of data.subarray()) {
        if (byte !== sent[received++]) reject(new Error(`byte ${received} differs`))
      }
      if (received === bytes) resolve()
    })
  })
  sendAll(stream, sent)
  await back
  await stream.close()
}

function sendAll(stream: Stream, bytes: Uint8Array): void {
  for (let start = 0; start < bytes.length; start += 100_000) {
    stream.send(bytes.subarray(start, start + 100_000))
  }
}

/** A clock on which waits are over 100 times as soon. */
const hasty: Clock = {
  now: () => systemClock.now(),
  sleep: (ms, signal) => systemClock.sleep(ms / 100, signal),
  deadline: (ms, cause, signal) => systemClock.deadline(ms / 100, cause, signal),
}

describe.each([
  ['itself', [tls()], [tls()]],
  ['a stock listener', [tls()], [stockTls()]],
  ['a stock dialler', [stockTls()], [tls()]],
] satisfies [string, EncrypterFactories, EncrypterFactories][])(
  'with %s',
  (_who, dialler, listener) => {
    test('carries bytes both ways, the muxer negotiated early', async () => {
      const from = await startLibp2p(dialler)
      const to = await startLibp2p(listener)
      const connection = await dial(from, to)
      expect(connection.encryption).toBe('/tls/1.0.0')
      expect(connection.multiplexer).toBe('/yamux/1.0.0')
      expect(connection.remotePeer.equals(to.peerId)).toBe(true)
      await expectEcho(connection, 1)
      await expectEcho(connection, 3_000_000)
      expect(to.getPeers().map(String)).toEqual([from.peerId.toString()])
    })

    test('closes cleanly: no connection is left, at neither end, after ten', async () => {
      const from = await startLibp2p(dialler)
      const to = await startLibp2p(listener)
      const ends: (Error | undefined)[] = []
      to.addEventListener('connection:open', ({ detail }) => {
        detail.addEventListener('close', ({ error }) => void ends.push(error))
      })
      for (let count = 1; count <= 10; count++) {
        const connection = await dial(from, to)
        await expectEcho(connection, 1000)
        await connection.close()
        await until(() => ends.length === count)
      }
      expect(from.getConnections()).toEqual([])
      expect(to.getConnections()).toEqual([])
      expect(ends.filter((error) => error !== undefined)).toEqual([])
    })

    test('refuses a peer that is not the one that was meant', async () => {
      const from = await startLibp2p(dialler)
      const to = await startLibp2p(listener)
      const [address] = to.getMultiaddrs().map((each) => each.toString().split('/p2p/')[0])
      const other = (await createIdentity()).peerId
      await expect(from.dial(multiaddr(`${address}/p2p/${other}`))).rejects.toThrow()
      expect(from.getConnections()).toEqual([])
      await until(() => to.getConnections().length === 0)
    })

    test('sees it when the other side is gone without a word', async () => {
      const from = await startLibp2p(dialler)
      const to = await startLibp2p(listener)
      const connection = await dial(from, to)
      await expectEcho(connection, 1)
      to.getConnections()[0]?.abort(new Error('cut'))
      await until(() => connection.status !== 'open')
      expect(from.getConnections()).toEqual([])
    })
  },
)

test('a peer that knows noise only gets noise', async () => {
  const noiseOnly = await startLibp2p([noise()])
  const both = await startLibp2p(nodeEncrypters())
  expect((await dial(both, noiseOnly)).encryption).toBe('/noise')
  const another = await startLibp2p([noise()])
  expect((await dial(another, both)).encryption).toBe('/noise')
})

test('without a muxer by ALPN it is negotiated afterwards', async () => {
  const plain: EncrypterFactories = [
    (components) => {
      const encrypter = tls()(components)
      return {
        ...encrypter,
        secureOutbound: (connection, options) =>
          encrypter.secureOutbound(connection, { ...options, skipStreamMuxerNegotiation: true }),
      }
    },
  ]
  const connection = await dial(await startLibp2p(plain), await startLibp2p([tls()]))
  expect(connection.multiplexer).toBe('/yamux/1.0.0')
  await expectEcho(connection, 1000)
})

describe('where there is no native handle', () => {
  test('any other connection is encrypted as a stream', async () => {
    const inMemory = (): Libp2pOptions => ({
      addresses: { listen: [freshAddress()] },
      transports: [memory()],
    })
    const from = await startLibp2p([tls()], inMemory())
    const to = await startLibp2p([tls()], inMemory())
    const connection = await dial(from, to)
    expect(connection.encryption).toBe('/tls/1.0.0')
    await expectEcho(connection, 3_000_000)
    await connection.close()
    await until(() => to.getConnections().length === 0)
  })

  test('a TCP connection of another build is, too, and that is said once', async () => {
    const { logger, events } = createRecorder()
    const from = await startLibp2p([
      (components) => {
        const encrypter = tls({ logger })(components)
        return {
          ...encrypter,
          secureOutbound: (connection, options) => {
            // Somebody else reads along.
            const socket: unknown = 'socket' in connection ? connection.socket : undefined
            if (socket instanceof Socket) socket.on('data', () => {})
            return encrypter.secureOutbound(connection, options)
          },
        }
      },
    ])
    const to = await startLibp2p([tls()])
    for (let count = 0; count < 2; count++) {
      const connection = await dial(from, to)
      await expectEcho(connection, 300_000)
      await connection.close()
    }
    expect(events.map(({ level, event }) => `${level} ${event}`)).toEqual([
      'warn tls_native_unavailable',
    ])
  })

  test('that is not so with the TCP transport in use', async () => {
    const { logger, events } = createRecorder()
    const connection = await dial(
      await startLibp2p([tls({ logger })]),
      await startLibp2p([tls({ logger })]),
    )
    await expectEcho(connection, 1)
    expect(events).toEqual([])
  })
})

describe('a peer that', () => {
  /** A socket that has agreed on TLS with `node`, and has not begun it. */
  async function agreedOnTls(node: Libp2p): Promise<Socket> {
    const [address] = node.getMultiaddrs()
    const socket = createConnection({
      host: '127.0.0.1',
      port: Number(address?.toString().split('/')[4]),
    })
    onTestFinished(() => void socket.destroy())
    socket.on('error', () => {})
    const lines = ['/multistream/1.0.0\n', '/tls/1.0.0\n']
    const hello = Buffer.concat(
      lines.map((line) => Buffer.concat([Uint8Array.of(line.length), Buffer.from(line)])),
    )
    socket.write(hello)
    let answer = Buffer.alloc(0)
    await new Promise<void>((resolve) => {
      const onData = (chunk: Buffer): void => {
        answer = Buffer.concat([answer, chunk])
        if (answer.length < hello.length) return
        socket.off('data', onData)
        socket.pause()
        resolve()
      }
      socket.on('data', onData)
    })
    expect(answer).toEqual(hello)
    return socket
  }

  async function expectHungUp(socket: Socket): Promise<void> {
    socket.resume()
    if (!socket.destroyed) await new Promise((resolve) => socket.once('close', resolve))
  }

  async function tlsWith(socket: Socket, options: SecureContextOptions): Promise<void> {
    const secured = connectTls({
      socket,
      ...options,
      rejectUnauthorized: false,
      ALPNProtocols: ['libp2p'],
    })
    secured.on('error', () => {})
    secured.resume()
    await new Promise((resolve) => secured.once('close', resolve))
  }

  test('says nothing is left after a while', async () => {
    const node = await startLibp2p([tls({ clock: hasty })])
    const socket = await agreedOnTls(node)
    await expectHungUp(socket)
    expect(node.getConnections()).toEqual([])
  })

  test.each([
    ['HTTP', Buffer.from('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n')],
    ['a cut-off hello', Buffer.from('160301020001000', 'hex')],
    ['zeros', Buffer.alloc(100_000)],
  ])('speaks %s is left', async (_what, bytes) => {
    const node = await startLibp2p([tls({ clock: hasty })])
    const socket = await agreedOnTls(node)
    socket.write(bytes)
    await expectHungUp(socket)
    expect(node.getConnections()).toEqual([])
  })

  test('hangs up in the middle of the handshake leaves nothing behind', async () => {
    const node = await startLibp2p([tls()])
    for (let count = 0; count < 5; count++) {
      const socket = await agreedOnTls(node)
      if (count % 2 === 0) socket.end()
      else socket.resetAndDestroy()
    }
    const honest = await startLibp2p([tls()])
    await expectEcho(await dial(honest, node), 1000)
    expect(node.getConnections()).toHaveLength(1)
  })

  test('shows no certificate, or speaks TLS 1.2, is refused', async () => {
    const node = await startLibp2p([tls()])
    const certificate = await createCertificate((await createIdentity()).privateKey)
    await tlsWith(await agreedOnTls(node), {})
    await tlsWith(await agreedOnTls(node), { ...certificate, maxVersion: 'TLSv1.2' })
    expect(node.getConnections()).toEqual([])
  })
})
