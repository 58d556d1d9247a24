/**
 * The least that Node's own HTTP server can do, for `npm run bench -- api`: counts the bytes of a POST, answers a GET
 * with as many bytes as its path says, all from one slice. Prints its port.
 */
import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'

const SLICE_BYTES = 1 << 20
const slice = new Uint8Array(SLICE_BYTES)

async function answer(incoming: IncomingMessage, outgoing: ServerResponse): Promise<void> {
  if (incoming.method === 'POST') {
    let bytes = 0
    incoming.on('data', (piece: Buffer) => (bytes += piece.length))
    await once(incoming, 'end')
    outgoing.end(String(bytes))
    return
  }
  const bytes = Number(incoming.url?.slice(1))
  outgoing.writeHead(200, { 'content-length': bytes })
  for (let left = bytes; left > 0; left -= SLICE_BYTES) {
    if (!outgoing.write(slice.subarray(0, left))) await once(outgoing, 'drain')
  }
  outgoing.end()
}

const server = createServer((incoming, outgoing) => {
  answer(incoming, outgoing).catch(() => outgoing.destroy())
})
server.listen(0, '127.0.0.1', () => {
  const bound = server.address()
  process.stdout.write(`${typeof bound === 'object' ? bound?.port : bound}\n`)
})
