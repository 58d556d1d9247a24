/** A libp2p message stream as a Node stream, with back-pressure both ways. */
import { Duplex } from 'node:stream'
import type { MessageStream, StreamMessageEvent } from '@libp2p/interface'
import { Uint8ArrayList } from 'uint8arraylist'
import { asFault, messageOf, ShoalError } from '../../src/errors.ts'

type Done = (error?: Error | null) => void

/** Ends, and fails, with the message stream; ending it closes that. */
export function messageStreamDuplex(stream: MessageStream): Duplex {
  let onDrain: (() => void) | undefined
  let hasEnded = false

  function send(data: Uint8Array | Uint8ArrayList, done: Done): void {
    try {
      if (stream.send(data)) done()
      else onDrain = done
    } catch (thrown) {
      done(new ShoalError('peer_unreachable', messageOf(thrown), { cause: thrown }))
    }
  }

  async function close(done: Done): Promise<void> {
    try {
      await stream.close()
      done()
    } catch (thrown) {
      done(asFault(thrown))
    }
  }

  const duplex = new Duplex({
    read: () => {
      if (stream.status === 'open') stream.resume()
    },
    write: (chunk: Uint8Array, _encoding, done) => send(chunk, done),
    writev: (chunks, done) =>
      send(new Uint8ArrayList(...chunks.map(({ chunk }: { chunk: Uint8Array }) => chunk)), done),
    final: (done) => void close(done),
  })
  stream.addEventListener('drain', () => {
    const done = onDrain
    onDrain = undefined
    done?.()
  })
  stream.addEventListener('message', ({ data }: StreamMessageEvent) => {
    const parts = data instanceof Uint8Array ? [data] : [...data]
    const canTakeMore = parts.map((part) => duplex.push(part)).every(Boolean)
    if (!canTakeMore && stream.status === 'open') stream.pause()
  })
  stream.addEventListener('remoteCloseWrite', end)
  stream.addEventListener('close', ({ error }) => {
    // What has arrived is still read after a clean end.
    if (error === undefined) end()
    else duplex.destroy(error)
  })

  function end(): void {
    if (!hasEnded) duplex.push(null)
    hasEnded = true
  }
  return duplex
}
