/** Which users of this machine hold the other end of a connection over loopback, where the system tells: on Linux. */
import { readFile } from 'node:fs/promises'

const TABLES = ['/proc/net/tcp', '/proc/net/tcp6']
/** Columns of such a table: `sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid …`. */
const [LOCAL, REMOTE, UID] = [1, 2, 7]

/** Ports as they are seen from this end. */
export interface ConnectionPorts {
  own: number
  other: number
}

/** Whether nobody but this process's user, or root, holds the other end. True where the system does not tell. */
export async function isOwnConnection(ports: ConnectionPorts): Promise<boolean> {
  const own = process.getuid?.()
  if (own === undefined) return true
  const tables = await Promise.all(TABLES.map((path) => readFile(path, 'latin1').catch(() => '')))
  return tables.flatMap((table) => ownersIn(table, ports)).every((uid) => uid === own || uid === 0)
}

/**
 * User ids of the sockets in such a table that are the other end. There may be several, since addresses are not looked
 * at: all of 127.0.0.0/8 is loopback, and ports of one address say nothing about those of another.
 */
export function ownersIn(table: string, { own, other }: ConnectionPorts): number[] {
  return table.split('\n').flatMap((line) => {
    const columns = line.trim().split(/\s+/)
    const fits = portOf(columns[LOCAL]) === other && portOf(columns[REMOTE]) === own
    return fits ? [Number(columns[UID])] : []
  })
}

/** Of an address such as `0100007F:0FAB`. */
function portOf(address: string | undefined): number {
  return Number.parseInt(address?.split(':')[1] ?? '', 16)
}
