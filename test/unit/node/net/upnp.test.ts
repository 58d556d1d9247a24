/** Against a router that is a program of this test: what it is asked, and what it may not make us do. */
import { createSocket } from 'node:dgram'
import { createServer } from 'node:http'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { describe, expect, onTestFinished, test } from 'vitest'
import { keepPortMapped, lanPortOf } from '../../../../node/net/port-mapping.ts'
import type { PortMapping } from '../../../../node/net/port-mapping.ts'
import { findGateway, mapPort, outsideHost, unmapPort } from '../../../../node/net/upnp.ts'
import { systemClock } from '../../../../src/clock.ts'
import { createMetrics } from '../../../../src/metrics.ts'
import type { Endpoint } from '../../../../src/net/nat.ts'
import type { Logger } from '../../../../src/log.ts'
import { createManualClock } from '../../../manual-clock.ts'
import { createRecorder, until } from '../../net/memory-network.ts'

const SERVICE = 'urn:schemas-upnp-org:service:WANIPConnection:1'

interface Router {
  searchAt: Endpoint
  asked: string[]
  port: number
  /** Who has which port. */
  clients: Map<string, string>
}

interface Behaviour {
  location?: (port: number) => string
  service?: string
  control?: string
  /** Error codes of the first answers to `AddPortMapping`; undefined: done. */
  errors?: (string | undefined)[]
  /** Of all answers to this action. */
  unknownAction?: string
  /** Maps, but never says so. */
  isSilent?: boolean
  description?: string
}

/** As WANIPConnection:1 §2.4 says, for one router with one table. */
function act(
  action: string,
  body: string,
  clients: Map<string, string>,
): { fault?: string; values?: string } {
  const valueOf = (name: string): string => new RegExp(`<${name}>([^<]*)<`).exec(body)?.[1] ?? ''
  const port = valueOf('NewExternalPort')
  const client = clients.get(port)
  switch (action) {
    case 'AddPortMapping': {
      const wanted = valueOf('NewInternalClient')
      if (client !== undefined && client !== wanted) return { fault: '718' }
      clients.set(port, wanted)
      return { values: '' }
    }
    case 'GetSpecificPortMappingEntry':
      if (client === undefined) return { fault: '714' }
      return {
        values: `<NewInternalPort>${port}</NewInternalPort><NewInternalClient>${client}</NewInternalClient>`,
      }
    case 'DeletePortMapping':
      return clients.delete(port) ? { values: '' } : { fault: '714' }
    case 'GetExternalIPAddress':
      return { values: '<NewExternalIPAddress>11.0.1.1</NewExternalIPAddress>' }
    default:
      return { fault: '401' }
  }
}

async function startRouter(behaviour: Behaviour = {}): Promise<Router> {
  const { service = SERVICE, control = '/ctl', errors = [] } = behaviour
  const asked: string[] = []
  const clients = new Map<string, string>()
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
    const action = /#(\w+)"/.exec(header)?.[1] ?? ''
    if (action === 'AddPortMapping' && behaviour.isSilent === true) {
      act(action, body, clients)
      return
    }
    const isUnknown = action === behaviour.unknownAction
    const first = action === 'AddPortMapping' ? errors.shift() : undefined
    const { fault, values } = isUnknown
      ? { fault: '401' }
      : first
        ? { fault: first }
        : act(action, body, clients)
    if (fault === undefined)
      return void outgoing.end(`<u:${action}Response>${values}</u:${action}Response>`)
    outgoing.statusCode = 500
    return void outgoing.end(`<UPnPError><errorCode>${fault}</errorCode></UPnPError>`)
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
  return { searchAt: { host: '127.0.0.1', port: ssdp.address().port }, asked, port, clients }
}

/** What was asked for, in turn. */
function actionsOf({ asked }: Router): string[] {
  return asked.map((text) => /#(\w+)"/.exec(text)?.[1] ?? '')
}

function keep(searchAt: Endpoint, logger: Logger): PortMapping {
  const gateway = async (): Promise<undefined> => undefined
  const metrics = createMetrics()
  return keepPortMapped({ port: 4010, clock: systemClock, logger, metrics, searchAt, gateway })
}

const signal = AbortSignal.timeout(60_000)

describe('a router', () => {
  test('is found, forwards a port, and takes it back', async () => {
    const router = await startRouter()
    const { searchAt, asked, port, clients } = router
    const gateway = await findGateway(signal, searchAt)
    expect(gateway).toEqual({
      host: '127.0.0.1',
      localHost: '127.0.0.1',
      controlUrl: `http://127.0.0.1:${port}/ctl`,
      service: SERVICE,
    })
    if (gateway === undefined) throw new Error('no gateway')
    await mapPort(gateway, 4010, 3600, signal)
    const [, added] = asked
    expect(added).toContain(`"${SERVICE}#AddPortMapping"`)
    expect(added).toContain('<NewExternalPort>4010</NewExternalPort>')
    expect(added).toContain('<NewInternalClient>127.0.0.1</NewInternalClient>')
    expect(added).toContain('<NewLeaseDuration>3600</NewLeaseDuration>')
    expect(clients).toEqual(new Map([['4010', '127.0.0.1']]))
    expect(await outsideHost(gateway, signal)).toBe('11.0.1.1')
    await mapPort(gateway, 4010, 3600, signal)
    await unmapPort(gateway, 4010, signal)
    expect(clients.size).toBe(0)
    await unmapPort(gateway, 4010, signal)
    expect(actionsOf(router).filter((action) => action === 'DeletePortMapping')).toHaveLength(1)
  })

  test('that knows permanent mappings only gets one; another refusal is told', async () => {
    const { searchAt, asked } = await startRouter({ errors: ['725', undefined, '606'] })
    const gateway = await findGateway(signal, searchAt)
    if (gateway === undefined) throw new Error('no gateway')
    await mapPort(gateway, 4010, 3600, signal)
    expect(asked[2]).toContain('<NewLeaseDuration>0</NewLeaseDuration>')
    await expect(mapPort(gateway, 4010, 3600, signal)).rejects.toMatchObject({
      code: 'refused',
      message: expect.stringContaining('606'),
    })
  })

  test('that has given the port to another machine is not asked for it, nor to take it back', async () => {
    const router = await startRouter()
    const gateway = await findGateway(signal, router.searchAt)
    if (gateway === undefined) throw new Error('no gateway')
    router.clients.set('4010', '192.168.7.7')
    await expect(mapPort(gateway, 4010, 3600, signal)).rejects.toMatchObject({
      code: 'refused',
      message: '192.168.7.7 has the port',
    })
    await unmapPort(gateway, 4010, signal)
    expect(router.clients.get('4010')).toBe('192.168.7.7')
    const asking = 'GetSpecificPortMappingEntry'
    expect(actionsOf(router)).toEqual([asking, asking])
  })

  test('that does not tell whose a port is forwards it, and keeps what may be of another', async () => {
    const router = await startRouter({ unknownAction: 'GetSpecificPortMappingEntry' })
    const gateway = await findGateway(signal, router.searchAt)
    if (gateway === undefined) throw new Error('no gateway')
    await mapPort(gateway, 4010, 3600, signal)
    await unmapPort(gateway, 4010, signal)
    expect(actionsOf(router)).not.toContain('DeletePortMapping')
  })

  test.each<[string, Behaviour]>([
    ['points to another host', { location: () => 'http://127.0.0.2:1/root.xml' }],
    ['points to a file', { location: () => 'file:///etc/passwd' }],
    ['points nowhere', { location: () => 'nonsense' }],
    ['has its controls elsewhere', { control: 'http://192.0.2.1/ctl' }],
    ['forwards nothing', { service: 'urn:schemas-upnp-org:service:Printer:1' }],
    ['describes itself without end', { description: '<service>'.repeat(100_000) }],
    ['begins services and ends none', { description: '<service>'.repeat(7_000) }],
  ])('that %s is none', async (_what, behaviour) => {
    const { searchAt, asked } = await startRouter(behaviour)
    expect(await findGateway(signal, searchAt)).toBe(undefined)
    expect(asked).toEqual([])
  })
})

test('a node keeps its port forwarded while it runs', async () => {
  const { searchAt, clients } = await startRouter()
  const { logger, events } = createRecorder()
  const mapping = keep(searchAt, logger)
  await until(() => events.some(({ event }) => event === 'port_mapped'))
  const outside = { host: '11.0.1.1', port: 4010 }
  const forwarding = { protocol: 'upnp', router: '127.0.0.1', port: 4010, outside }
  expect(mapping.forwarding()).toEqual(forwarding)
  expect(clients.get('4010')).toBe('127.0.0.1')
  await mapping.close()
  expect(clients.size).toBe(0)
  expect(mapping.forwarding()).toBe(undefined)
})

test('a node that ends before the router has answered gives the port back', async () => {
  const { searchAt, clients } = await startRouter({ isSilent: true })
  const mapping = keep(searchAt, createRecorder().logger)
  await until(() => clients.size === 1)
  await mapping.close()
  expect(clients.size).toBe(0)
})

test('a node takes no port from another machine that has it', async () => {
  const { searchAt, clients } = await startRouter()
  clients.set('4010', '192.168.7.7')
  const { logger, events } = createRecorder()
  const mapping = keep(searchAt, logger)
  await until(() => events.some(({ event }) => event === 'no_port_mapping'))
  await mapping.close()
  expect(clients.get('4010')).toBe('192.168.7.7')
})

test('nor from one that has got it while it was forwarded here', async () => {
  const { searchAt, clients } = await startRouter()
  const { logger, events } = createRecorder()
  const clock = createManualClock()
  const gateway = async (): Promise<undefined> => undefined
  const metrics = createMetrics()
  const mapping = keepPortMapped({ port: 4010, clock, logger, metrics, searchAt, gateway })
  await until(() => events.some(({ event }) => event === 'port_mapped'))
  // The router has restarted, and another machine was faster.
  clients.set('4010', '192.168.7.7')
  while (!events.some(({ event }) => event === 'no_port_mapping')) {
    await clock.advance(600_000)
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
  expect(mapping.forwarding()).toBe(undefined)
  await mapping.close()
  expect(clients.get('4010')).toBe('192.168.7.7')
})

test('a node without such a router goes on as if nothing were', async () => {
  const { logger, events } = createRecorder()
  const mapping = keep({ host: '127.0.0.1', port: 9 }, logger)
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
