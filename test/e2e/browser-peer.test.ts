/** A web page as a peer: it meets one that nobody can dial at a relay, and both come together by WebRTC. */
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { join } from 'node:path'
import { rolldown } from 'rolldown'
import { expect, onTestFinished, test } from 'vitest'
import { loadPeerConnection } from '../../node/net/transports.ts'
import { until } from '../unit/net/memory-network.ts'
import { startReflector, startRelay, startTcpNetwork } from '../unit/node/net/relay-network.ts'
import { findChromium, startBrowser } from './browser.ts'

const CHUNKS = 8

const chromium = findChromium()
const PeerConnection = await loadPeerConnection()
if (chromium === undefined)
  console.warn('no peer in a browser: no Chromium on the PATH, nor in CHROMIUM')
if (PeerConnection === undefined)
  console.warn('no peer in a browser: no @roamhq/wrtc for this machine')

/** Where the page is; whatever the library needs of Node would make the bundle fail, or the page. */
async function servePage(): Promise<string> {
  const bundle = await rolldown({
    input: join(import.meta.dirname, 'browser-peer.ts'),
    platform: 'browser',
  })
  const { output } = await bundle.generate({ format: 'iife' })
  await bundle.close()
  const server = createServer(({ url }, response) => {
    const isScript = url === '/peer.js'
    response.setHeader('content-type', isScript ? 'text/javascript' : 'text/html')
    response.end(isScript ? output[0].code : '<!doctype html><script src="/peer.js"></script>')
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(() => void server.close())
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('the server has no port')
  return `http://${address.address}:${address.port}/`
}

test.skipIf(chromium === undefined || PeerConnection === undefined)(
  'a page reaches a peer that nobody can dial, and by WebRTC soon',
  async () => {
    const listen = ['/ip4/127.0.0.1/tcp/0/ws']
    const relay = await startRelay({}, { listen, reflectorPorts: await startReflector() })
    const bootstrap = relay.addresses()
    const hidden = await startTcpNetwork({ listen: [], bootstrap, PeerConnection })
    hidden.rpc.handle('test/hash', async (bytes) => createHash('sha256').update(bytes).digest())
    const [browser, url] = await Promise.all([startBrowser(chromium ?? ''), servePage()])
    onTestFinished(() => browser.close())
    const { page } = browser
    await page.open(url)
    await until(() => hidden.relays().length > 0)
    await page.evaluate(
      `shoal.start(${JSON.stringify(bootstrap)}).then((network) => { globalThis.network = network; return true })`,
    )
    const peer = JSON.stringify(hidden.peerId)
    await page.until('network.connectedPeers().length > 0')
    await page.evaluate(`network.connect(${peer})`)
    await page.until(
      `network.links().some((link) => link.peer === ${peer} && link.transport === 'webrtc')`,
    )
    await until(() => hidden.links().some(({ transport }) => transport === 'webrtc'))
    expect(await page.evaluate(`shoal.exchange(network, ${peer}, ${CHUNKS})`)).toBe(true)
    const link = hidden.links().find(({ transport }) => transport === 'webrtc')
    expect(link?.bytesReceived).toBeGreaterThan(CHUNKS << 20)
    await page.evaluate('network.stop()')
    await until(() => hidden.links().every(({ transport }) => transport !== 'webrtc'))
  },
)
