/**
 * Asks the router of the LAN to forward a port (UPnP Forum, Internet Gateway Device: WANIPConnection and
 * WANPPPConnection, AddPortMapping).
 *
 * Anything on the LAN may claim to be the router, so an answer is believed about its own address only, every body is
 * bounded, and nothing else is read from it than where to send the question.
 */
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { isIPv4 } from 'node:net'
import { raceSignal, systemClock } from '../../src/clock.ts'
import { ShoalError } from '../../src/errors.ts'
import { isGlobalHost } from '../../src/net/addresses.ts'
import type { Endpoint } from '../../src/net/nat.ts'
import { hostTowards } from './gateway.ts'
import { elementsOf, wordOf } from './xml-elements.ts'

/** Where every UPnP device of a LAN listens. */
const MULTICAST: Endpoint = { host: '239.255.255.250', port: 1900 }
const SEARCH_MS = 2_500
const REPEAT_MS = 1_000
/** Of a LAN with several devices the others answer together with the first. */
const OTHERS_MS = 200
const HTTP_MS = 5_000
/** Descriptions of routers have some kilobytes. */
const BODY_BYTES = 64 << 10
const LOCATIONS = 8
const TARGETS = [
  'urn:schemas-upnp-org:device:InternetGatewayDevice:1',
  'urn:schemas-upnp-org:device:InternetGatewayDevice:2',
]
const SERVICE = /^urn:schemas-upnp-org:service:WAN(IP|PPP)Connection:\d$/
/** Some routers know no mapping that ends by itself. */
const ONLY_PERMANENT = '725'
const NO_SUCH_MAPPING = '714'

export interface Gateway {
  /** Of the router. */
  host: string
  /** Of this machine, as the router sees it. */
  localHost: string
  controlUrl: string
  service: string
}

/** Undefined when no router answers that can forward. `searchAt`: for tests. */
export async function findGateway(
  signal: AbortSignal,
  searchAt: Endpoint = MULTICAST,
): Promise<Gateway | undefined> {
  for (const location of await search(searchAt, signal)) {
    try {
      const gateway = await describe(location, signal)
      if (gateway !== undefined) return gateway
    } catch {
      signal.throwIfAborted()
    }
  }
  return undefined
}

/**
 * Forwards TCP from the same port outside. Rejects with `refused` and the router's reason, or when another machine has
 * the port: some routers would take it away from that one.
 */
export async function mapPort(
  gateway: Gateway,
  port: number,
  leaseSeconds: number,
  signal: AbortSignal,
): Promise<void> {
  const owner = await ownerOf(gateway, port, signal)
  if (owner.kind === 'other') throw new ShoalError('refused', `${owner.host} has the port`)
  const add = (seconds: number): Promise<Answer> =>
    call(
      gateway,
      'AddPortMapping',
      {
        ...outsideOf(port),
        NewInternalPort: String(port),
        NewInternalClient: gateway.localHost,
        NewEnabled: '1',
        NewPortMappingDescription: 'shoal',
        NewLeaseDuration: String(seconds),
      },
      signal,
    )
  const first = await add(leaseSeconds)
  const { fault } = first.fault === ONLY_PERMANENT ? await add(0) : first
  if (fault !== undefined) {
    throw new ShoalError('refused', `the router refuses: UPnP error ${fault}`)
  }
}

/** Ends the mapping of a port if it leads to this machine: another one may have got the port meanwhile. */
export async function unmapPort(
  gateway: Gateway,
  port: number,
  signal: AbortSignal,
): Promise<void> {
  const { kind } = await ownerOf(gateway, port, signal)
  if (kind === 'self') await call(gateway, 'DeletePortMapping', outsideOf(port), signal)
}

/** The router's own address outside; undefined when it does not say. */
export async function outsideHost(
  gateway: Gateway,
  signal: AbortSignal,
): Promise<string | undefined> {
  const { text } = await call(gateway, 'GetExternalIPAddress', {}, signal)
  const host = wordOf(text, 'NewExternalIPAddress')
  return host !== undefined && isIPv4(host) && host !== '0.0.0.0' ? host : undefined
}

type Owner = { kind: 'self' | 'nobody' | 'unknown' } | { kind: 'other'; host: string }

async function ownerOf(gateway: Gateway, port: number, signal: AbortSignal): Promise<Owner> {
  const asked = await call(gateway, 'GetSpecificPortMappingEntry', outsideOf(port), signal)
  if (asked.fault === NO_SUCH_MAPPING) return { kind: 'nobody' }
  const host = wordOf(asked.text, 'NewInternalClient')
  if (asked.fault !== undefined || host === undefined || !isIPv4(host)) return { kind: 'unknown' }
  const isSamePort = wordOf(asked.text, 'NewInternalPort') === String(port)
  return host === gateway.localHost && isSamePort ? { kind: 'self' } : { kind: 'other', host }
}

function outsideOf(port: number): Record<string, string> {
  return { NewRemoteHost: '', NewExternalPort: String(port), NewProtocol: 'TCP' }
}

/** URLs of descriptions, each of the host that has sent it. */
async function search(at: Endpoint, signal: AbortSignal): Promise<URL[]> {
  const found = new Map<string, URL>()
  const socket = createSocket('udp4')
  const answered = new AbortController()
  const limit = systemClock.deadline(SEARCH_MS, 'searching a router', signal)
  // A network without multicast refuses to send.
  socket.on('error', () => {})
  socket.on('message', (bytes, { address }) => {
    const location = /^location: *(\S+)/im.exec(bytes.toString('latin1'))?.[1]
    const url = location !== undefined && URL.canParse(location) ? new URL(location) : undefined
    const isItsOwn = url?.protocol === 'http:' && url.hostname === address
    if (url === undefined || !isItsOwn || isGlobalHost(address)) return
    if (found.size < LOCATIONS) found.set(url.href, url)
    answered.abort()
  })
  try {
    socket.bind(0)
    await raceSignal(once(socket, 'listening'), limit)
    while (found.size === 0 && !limit.aborted) {
      for (const target of TARGETS) {
        const lines = [
          'M-SEARCH * HTTP/1.1',
          `HOST: ${MULTICAST.host}:${MULTICAST.port}`,
          'MAN: "ssdp:discover"',
          'MX: 1',
          `ST: ${target}`,
        ]
        socket.send(`${lines.join('\r\n')}\r\n\r\n`, at.port, at.host, () => {})
      }
      const either = AbortSignal.any([limit, answered.signal])
      await systemClock.sleep(REPEAT_MS, either).catch(() => {})
    }
    if (found.size > 0) await systemClock.sleep(OTHERS_MS, limit).catch(() => {})
  } finally {
    socket.close()
  }
  signal.throwIfAborted()
  return [...found.values()]
}

async function describe(location: URL, signal: AbortSignal): Promise<Gateway | undefined> {
  const text = await request(location, {}, signal)
  for (const service of elementsOf(text, 'service')) {
    const type = wordOf(service, 'serviceType') ?? ''
    const control = wordOf(service, 'controlURL')
    if (!SERVICE.test(type) || control === undefined || !URL.canParse(control, location)) continue
    const controlUrl = new URL(control, location)
    if (controlUrl.hostname !== location.hostname) continue
    const { hostname: host } = location
    const localHost = await hostTowards(host, Number(location.port) || 80, signal)
    return { host, localHost, controlUrl: controlUrl.href, service: type }
  }
  return undefined
}

interface Answer {
  /** The router's error code; undefined when it has done what it was asked to. */
  fault: string | undefined
  text: string
}

async function call(
  { controlUrl, service, localHost }: Gateway,
  action: string,
  values: Record<string, string>,
  signal: AbortSignal,
): Promise<Answer> {
  if (!isIPv4(localHost)) throw new ShoalError('internal', `${localHost} is no IPv4 address`)
  const fields = Object.entries(values).map(([name, value]) => `<${name}>${value}</${name}>`)
  const body = `<?xml version="1.0"?>
<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/">
<s:Body><u:${action} xmlns:u="${service}">${fields.join('')}</u:${action}></s:Body></s:Envelope>`
  const headers = {
    'content-type': 'text/xml; charset="utf-8"',
    soapaction: `"${service}#${action}"`,
  }
  const text = await request(new URL(controlUrl), { method: 'POST', headers, body }, signal)
  if (text.includes(`${action}Response`)) return { fault: undefined, text }
  const code = wordOf(text, 'errorCode') ?? ''
  return { fault: /^\d{1,5}$/.test(code) ? code : 'without a code', text }
}

/** The body, whatever the status: faults of SOAP come with 500. */
async function request(url: URL, init: RequestInit, signal: AbortSignal): Promise<string> {
  const limit = systemClock.deadline(HTTP_MS, 'the router', signal)
  const { body } = await fetch(url, { ...init, redirect: 'error', signal: limit })
  const pieces: Uint8Array[] = []
  let bytes = 0
  for await (const piece of body ?? []) {
    bytes += piece.length
    if (bytes > BODY_BYTES) throw new ShoalError('limit_exceeded', 'the router says too much')
    pieces.push(piece)
  }
  return Buffer.concat(pieces).toString()
}
