/** Against a router that is a program of this test: what it is asked, and what it may not make us do. */
import { createSocket } from 'node:dgram'
import { createServer } from 'node:http'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { describe, expect, onTestFinished, test } from 'vitest'
import { keepPortMapped, lanPortOf } from '../../../../node/net/port-mapping.ts'
import { findGateway, mapPort, unmapPort } from '../../../../node/net/upnp.ts'
import { systemClock } from '../../../../src/clock.ts'
import type { Endpoint } from '../../../../src/net/nat.ts'
import { createRecorder, until } from '../../net/memory-network.ts'

const SERVICE = 'urn:schemas-upnp-org:service:WANIPConnection:1'

interface Router {
  searchAt: Endpoint
  asked: string[]
  port: number
}

interface Behaviour {
  location?: (port: number) => string
  service?: string
  control?: string
  /** Error codes of the first answers; undefined: done. */
  errors?: (string | undefined)[]
  /** Maps, but never says so. */
  isSilent?: boolean
  description?: string
}

async function startRouter(behaviour: Behaviour = {}): Promise<Router> {
  const { service = SERVICE, control = '/ctl', errors = [] } = behaviour
  const asked: string[] = []
  const description =
    behaviour.description ??
    `<root><device><serviceList><service><serviceType>urn:x:other:1</serviceType>
     <controlURL>/other</controlURL></service><service><serviceType>${service}</serviceType>
     <controlURL>${control}</controlURL></service></serviceList></device></root>`
  const answer = async (incoming: IncomingMessage, outgoing: ServerResponse): Promise<void> => {
    if (incoming.method === 'GET') return void outgoing.end(description)
    let body = ''
    for await (const piece of incoming) body += String(piece)
    const header = String(incoming.headers['soapaction'])
    asked.push(`${header} ${body}`)
    const action = /#(\w+)"/.exec(header)?.[1]
    if (behaviour.isSilent === true && action === 'AddPortMapping') return
    const error = errors.shift()
    if (error === undefined) return void outgoing.end(`<u:${action}Response/>`)
    outgoing.statusCode = 500
    return void outgoing.end(`<UPnPError><errorCode>${error}</errorCode></UPnPError>`)
  }
  const server = createServer((incoming, outgoing) => void answer(incoming, outgoing))
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- a listening TCP server has one
  const { port } = server.address() as AddressInfo
  const ssdp = createSocket('udp4')
  ssdp.bind(0, '127.0.0.1')
  await once(ssdp, 'listening')
  const location = behaviour.location?.(port) ?? `http://127.0.0.1:${port}/root.xml`
  ssdp.on('message', (bytes, from) => {
    expect(bytes.toString()).toMatch(/^M-SEARCH \* HTTP\/1\.1\r\n/)
    ssdp.send(`HTTP/1.1 200 OK\r\nST: x\r\nLocation: ${location}\r\n\r\n`, from.port, from.address)
  })
  onTestFinished(() => {
    ssdp.close()
    server.close()
  })
  return { searchAt: { host: '127.0.0.1', port: ssdp.address().port }, asked, port }
}

const signal = AbortSignal.timeout(60_000)

describe('a router', () => {
  test('is found, forwards a port, and takes it back', async () => {
    const { searchAt, asked, port } = await startRouter()
    const gateway = await findGateway(signal, searchAt)
    expect(gateway).toEqual({
      host: '127.0.0.1',
      localHost: '127.0.0.1',
      controlUrl: `http://127.0.0.1:${port}/ctl`,
      service: SERVICE,
    })
    if (gateway === undefined) throw new Error('no gateway')
    await mapPort(gateway, 4010, 3600, signal)
    expect(asked[0]).toContain(`"${SERVICE}#AddPortMapping"`)
    expect(asked[0]).toContain('<NewExternalPort>4010</NewExternalPort>')
    expect(asked[0]).toContain('<NewInternalClient>127.0.0.1</NewInternalClient>')
    expect(asked[0]).toContain('<NewLeaseDuration>3600</NewLeaseDuration>')
    await unmapPort(gateway, 4010, signal)
    expect(asked[1]).toContain(`"${SERVICE}#DeletePortMapping"`)
  })

  test('that knows permanent mappings only gets one; another refusal is told', async () => {
    const { searchAt, asked } = await startRouter({ errors: ['725', undefined, '718'] })
    const gateway = await findGateway(signal, searchAt)
    if (gateway === undefined) throw new Error('no gateway')
    await mapPort(gateway, 4010, 3600, signal)
    expect(asked[1]).toContain('<NewLeaseDuration>0</NewLeaseDuration>')
    await expect(mapPort(gateway, 4010, 3600, signal)).rejects.toMatchObject({
      code: 'refused',
      message: expect.stringContaining('718'),
    })
  })

  test.each<[string, Behaviour]>([
    ['points to another host', { location: () => 'http://127.0.0.2:1/root.xml' }],
    ['points to a file', { location: () => 'file:///etc/passwd' }],
    ['points nowhere', { location: () => 'nonsense' }],
    ['has its controls elsewhere', { control: 'http://192.0.2.1/ctl' }],
    ['forwards nothing', { service: 'urn:schemas-upnp-org:service:Printer:1' }],
    ['describes itself without end', { description: '<service>'.repeat(100_000) }],
  ])('that %s is none', async (_what, behaviour) => {
    const { searchAt, asked } = await startRouter(behaviour)
    expect(await findGateway(signal, searchAt)).toBe(undefined)
    expect(asked).toEqual([])
  })
})

test('a node keeps its port forwarded while it runs', async () => {
  const { searchAt, asked } = await startRouter()
  const { logger, events } = createRecorder()
  const mapping = keepPortMapped({ port: 4010, clock: systemClock, logger, searchAt })
  await until(() => asked.length === 1)
  await until(() => events.some(({ event }) => event === 'port_mapped'))
  await mapping.close()
  expect(asked).toHaveLength(2)
  expect(asked[1]).toContain('DeletePortMapping')
})

test('a node that ends before the router has answered gives the port back', async () => {
  const { searchAt, asked } = await startRouter({ isSilent: true })
  const { logger } = createRecorder()
  const mapping = keepPortMapped({ port: 4010, clock: systemClock, logger, searchAt })
  await until(() => asked.length === 1)
  await mapping.close()
  expect(asked).toHaveLength(2)
  expect(asked[1]).toContain('DeletePortMapping')
})

test('a node takes no port from another machine that has it', async () => {
  const { searchAt, asked } = await startRouter({ errors: ['718'] })
  const { logger, events } = createRecorder()
  const mapping = keepPortMapped({ port: 4010, clock: systemClock, logger, searchAt })
  await until(() => events.some(({ event }) => event === 'no_port_mapping'))
  await mapping.close()
  expect(asked).toHaveLength(1)
})

test('a node without such a router goes on as if nothing were', async () => {
  const { logger, events } = createRecorder()
  const searchAt = { host: '127.0.0.1', port: 9 }
  const mapping = keepPortMapped({ port: 4010, clock: systemClock, logger, searchAt })
  await until(() => events.some(({ event }) => event === 'no_port_mapping'))
  await mapping.close()
})

test('the port to forward is one of the LAN', () => {
  const relayed = '/ip4/192.168.1.2/tcp/7/p2p/12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf'
  const others = ['/ip4/127.0.0.1/tcp/1', '/ip4/11.0.0.1/tcp/2', '/ip4/192.168.1.2/tcp/3/ws']
  expect(lanPortOf(others)).toBe(undefined)
  expect(lanPortOf([`${relayed}/p2p-circuit`])).toBe(undefined)
  expect(lanPortOf([...others, '/ip4/192.168.1.2/tcp/4010'])).toBe(4010)
})
