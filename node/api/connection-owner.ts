/** Which user of this machine holds the other end of a connection over loopback, where the system tells: on Linux. */
import { readFile } from 'node:fs/promises'
import { isIPv4 } from 'node:net'
import { endianness } from 'node:os'
import type { Endpoint } from '../../src/net/nat.ts'

const TABLES = ['/proc/net/tcp', '/proc/net/tcp6']
/** Columns of such a table: `sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid …`. */
const [LOCAL, REMOTE, STATE, UID] = [1, 2, 3, 7]
/** A socket that its owner has closed is in another state, and said to be root's. */
const ESTABLISHED = '01'

/** Both as they are seen from this end; IPv4. */
export interface ConnectionEnds {
  own: Endpoint
  other: Endpoint
}

/**
 * Whether this process's user, or root, holds the other end, now: not once it is closed. True where the system does
 * not tell.
 */
export async function isOwnConnection(ends: ConnectionEnds): Promise<boolean> {
  if (process.platform !== 'linux') return true
  const tables = await Promise.all(TABLES.map((path) => readFile(path, 'latin1').catch(() => '')))
  const owner = ownerIn(tables.join('\n'), ends)
  return owner === 0 || (owner !== undefined && owner === process.getuid?.())
}

/**
 * User id of the socket in such a table that is the other end; undefined when none is. Addresses count, not ports
 * alone: another user may have the same port at another address of 127.0.0.0/8.
 */
export function ownerIn(table: string, { own, other }: ConnectionEnds): number | undefined {
  const [locals, remotes] = [namesOf(other), namesOf(own)]
  for (const line of table.split('\n')) {
    const columns = line.trim().split(/\s+/)
    const isIt = locals.includes(columns[LOCAL] ?? '') && remotes.includes(columns[REMOTE] ?? '')
    if (isIt && columns[STATE] === ESTABLISHED) return Number(columns[UID])
  }
  return undefined
}

/** As `0100007F:0FAB`, and as the address mapped to IPv6: words of the network's order, printed in the machine's. */
function namesOf({ host, port }: Endpoint): string[] {
  if (!isIPv4(host)) return []
  const isLittle = endianness() === 'LE'
  const bytes = host.split('.').map((byte) => Number(byte).toString(16).padStart(2, '0'))
  const address = (isLittle ? bytes.toReversed() : bytes).join('')
  const mapped = `${'0'.repeat(16)}${isLittle ? 'ffff0000' : '0000ffff'}${address}`
  const suffix = `:${port.toString(16).padStart(4, '0')}`
  return [address, mapped].map((name) => `${name}${suffix}`.toUpperCase())
}
