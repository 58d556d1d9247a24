/** A sign of life over one certain connection (`/ipfs/ping/1.0.0`); libp2p's own ping chooses the connection itself. */
import type { Connection } from '@libp2p/interface'
import { byteStream } from '@libp2p/utils'
import type { Clock } from '../clock.ts'
import { messageOf } from '../errors.ts'

const PROTOCOL = '/ipfs/ping/1.0.0'
const BYTES = 32
/** At once on one connection: several parts of a node may wonder whether a peer is there. Default 1. */
export const PINGS_AT_ONCE = 8

/** The round-trip time in milliseconds. Rejects when the answer does not come before the signal. */
export async function pingConnection(
  connection: Connection,
  clock: Clock,
  signal: AbortSignal,
): Promise<number> {
  const stream = await connection.newStream(PROTOCOL, {
    signal,
    runOnLimitedConnection: true,
    maxOutboundStreams: PINGS_AT_ONCE,
  })
  try {
    const bytes = byteStream(stream)
    const sent = crypto.getRandomValues(new Uint8Array(BYTES))
    const sentMs = clock.now()
    await bytes.write(sent, { signal })
    const echo = (await bytes.read({ bytes: BYTES, signal })).subarray()
    const rttMs = clock.now() - sentMs
    if (sent.some((byte, index) => byte !== echo[index])) throw new Error('another echo')
    await stream.close({ signal })
    return rttMs
  } catch (thrown) {
    stream.abort(new Error(messageOf(thrown)))
    throw thrown
  }
}
