/** The router that this machine sends by: what speaks NAT-PMP and PCP, and has no other way to be found. */
import { execFile } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { isIPv4 } from 'node:net'
import { promisify } from 'node:util'
import { raceSignal, systemClock } from '../../src/clock.ts'

const ROUTES_MS = 2_000
const ROUTES_BYTES = 256 << 10
const WAY_MS = 1_000

/** Undefined when the system names none. */
export async function defaultGateway(signal: AbortSignal): Promise<string | undefined> {
  const limit = systemClock.deadline(ROUTES_MS, 'reading the routes', signal)
  try {
    if (process.platform === 'linux') {
      return linuxGateway(await readFile('/proc/net/route', { encoding: 'latin1', signal: limit }))
    }
    const [file, ...argv] =
      process.platform === 'win32' ? ['route', 'print', '-4', '0.0.0.0'] : ['netstat', '-rn']
    const options = { signal: limit, maxBuffer: ROUTES_BYTES, windowsHide: true }
    const { stdout } = await promisify(execFile)(file, argv, options)
    return printedGateway(stdout)
  } catch {
    signal.throwIfAborted()
    return undefined
  }
}

/** Of `/proc/net/route` (proc(5)): addresses in hexadecimal, the byte order of a little-endian machine. */
export function linuxGateway(text: string): string | undefined {
  for (const line of text.split('\n').slice(1)) {
    const [, destination, gateway = '', flags = '', , , , mask] = line.trim().split(/\s+/)
    // RTF_UP and RTF_GATEWAY.
    const leadsOut = (Number.parseInt(flags, 16) & 3) === 3
    if (destination !== '00000000' || mask !== '00000000' || !leadsOut) continue
    if (!/^[\dA-F]{8}$/i.test(gateway)) continue
    return Buffer.from(gateway, 'hex').toReversed().join('.')
  }
  return undefined
}

/** Of `netstat -rn` (macOS, BSD) and of `route print` (Windows): the first line of a default route by IPv4. */
export function printedGateway(text: string): string | undefined {
  for (const line of text.split('\n')) {
    const [destination = '', second = '', third = ''] = line.trim().split(/\s+/)
    if (destination === 'default' && isIPv4(second)) return second
    if (destination === '0.0.0.0' && second === '0.0.0.0' && isIPv4(third)) return third
  }
  return undefined
}

/** The address of this machine that packets to `host` leave from. */
export async function hostTowards(
  host: string,
  port: number,
  signal: AbortSignal,
): Promise<string> {
  const limit = systemClock.deadline(WAY_MS, 'finding the way to the router', signal)
  const socket = createSocket('udp4')
  try {
    socket.connect(port, host)
    await raceSignal(once(socket, 'connect'), limit)
    return socket.address().address
  } finally {
    socket.close()
  }
}
