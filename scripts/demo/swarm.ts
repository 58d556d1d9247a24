/** The demo's daemons: started together, watched together, and stopped whatever happens. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { sha256 } from '@noble/hashes/sha2.js'
import { utf8ToBytes } from '@noble/hashes/utils.js'
import type { ApiClient } from '../../node/api/client.ts'
import { ROUTES } from '../../node/api/routes.ts'
import { systemClock } from '../../src/clock.ts'
import { ShoalError, asFault, isFaultCode } from '../../src/errors.ts'
import { createIdentity, identityToBytes } from '../../src/net/identity.ts'
import type { RunSpec } from '../../src/run/manifest.ts'
import type { RunView } from '../../src/run/view.ts'
import { spawnDaemon, type DaemonProcess } from './daemon-process.ts'

/** A call can fail a moment before the exit of its daemon, which explains it, is noticed. */
const EXIT_NOTICED_MS = 500
/** The terminal is redrawn, and peers are asked, this often. */
const FRAME_MS = 500
/** Without any progress of any peer for this long, something hangs. */
const STALL_MS = 180_000

export interface SwarmPeer {
  /** Its number, from 1. */
  label: string
  peerId: string
  client: ApiClient
}

export interface SwarmOptions {
  peers: number
  /** Where data folders and logs go. */
  folder: string
  /** Makes the identities the same each time. */
  seed: string | undefined
  signal: AbortSignal
}

/** Does `work` with a swarm whose members know the first one's address only. The signal fires when a daemon dies. */
export async function withSwarm<T>(
  options: SwarmOptions,
  work: (peers: SwarmPeer[], signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const daemons: DaemonProcess[] = []
  const death = new AbortController()
  const signal = AbortSignal.any([options.signal, death.signal])
  const configFile = join(options.folder, 'config.toml')
  // Without one of their own, daemons would read the user's.
  writeFileSync(configFile, '')

  const start = async (index: number, bootstrap: string | undefined): Promise<SwarmPeer> => {
    const label = `${index + 1}`
    const dataDir = join(options.folder, `peer-${label}`)
    if (options.seed !== undefined) await writeIdentity(dataDir, `${options.seed} ${label}`)
    const daemon = spawnDaemon({
      name: `peer ${label}`,
      dataDir,
      configFile,
      logFile: `${dataDir}.log`,
      bootstrap,
      onDeath: (fault) => death.abort(fault),
    })
    daemons.push(daemon)
    const client = await daemon.ready(signal)
    const { peerId } = await client.call(ROUTES.node, {}, { signal })
    return { label, peerId, client }
  }

  try {
    const first = await start(0, undefined)
    const bootstrap = await addressOf(first, signal)
    const rest = Array.from({ length: options.peers - 1 }, (_, index) => index + 1)
    const others = await Promise.all(rest.map((index) => start(index, bootstrap)))
    return await work([first, ...others], signal)
  } catch (thrown) {
    if (asFault(thrown).code === 'daemon_unreachable') await systemClock.sleep(EXIT_NOTICED_MS)
    throw death.signal.aborted ? death.signal.reason : thrown
  } finally {
    await Promise.all(daemons.map((daemon) => daemon.stop()))
  }
}

/** The key file that the daemon finds at its first start. */
async function writeIdentity(dataDir: string, seed: string): Promise<void> {
  const identity = await createIdentity(sha256(utf8ToBytes(`shoal demo ${seed}`)))
  mkdirSync(dataDir, { recursive: true, mode: 0o700 })
  writeFileSync(join(dataDir, 'identity.key'), identityToBytes(identity), { mode: 0o600 })
}

async function addressOf({ client }: SwarmPeer, signal: AbortSignal): Promise<string> {
  const { addresses } = await client.call(ROUTES.node, {}, { signal })
  const address = addresses.find((candidate) => candidate.startsWith('/ip4/127.0.0.1/'))
  if (address === undefined) throw new ShoalError('internal', 'the first peer listens nowhere')
  return address
}

/** Creates the run on the first peer; the others get its id and nothing else. Returns the run as created. */
export async function shareRun(
  peers: readonly SwarmPeer[],
  spec: RunSpec,
  signal: AbortSignal,
): Promise<RunView> {
  const [first, ...others] = peers
  if (first === undefined) throw new ShoalError('internal', 'a swarm has at least one peer')
  const created = await first.client.call(ROUTES.createRun, { spec }, { signal })
  await Promise.all(
    others.map(({ client }) => client.call(ROUTES.joinRun, { run: created.id }, { signal })),
  )
  return created
}

/** One peer at one moment. */
export interface PeerFrame extends Pick<SwarmPeer, 'label' | 'peerId'> {
  run: RunView
  /** Written to and read from all connections since the daemon started. */
  bytesSent: number
  bytesReceived: number
}

/** The swarm at every moment until all peers have finished. Throws when one fails, or none moves for long. */
export async function* watchRun(
  peers: readonly SwarmPeer[],
  run: string,
  signal: AbortSignal,
): AsyncGenerator<PeerFrame[]> {
  let progress = ''
  let movedMs = systemClock.now()
  while (true) {
    const frames = await Promise.all(peers.map((peer) => frameOf(peer, run, signal)))
    yield frames
    for (const { label, run: view } of frames) {
      if (view.error !== null) {
        const { code, message } = view.error
        throw new ShoalError(isFaultCode(code) ? code : 'internal', `peer ${label}: ${message}`)
      }
    }
    if (frames.every(({ run: { status } }) => status === 'finished')) return
    const nowMs = systemClock.now()
    const current = JSON.stringify(
      frames.map(({ run: { status, outerStep, innerStep } }) => [status, outerStep, innerStep]),
    )
    if (current !== progress) movedMs = nowMs
    progress = current
    if (nowMs - movedMs > STALL_MS) {
      throw new ShoalError('timeout', `no peer has made progress for ${STALL_MS / 1000} s`)
    }
    await systemClock.sleep(FRAME_MS, signal)
  }
}

async function frameOf(
  { label, peerId, client }: SwarmPeer,
  run: string,
  signal: AbortSignal,
): Promise<PeerFrame> {
  const [view, node] = await Promise.all([
    client.call(ROUTES.showRun, { run }, { signal }),
    client.call(ROUTES.node, {}, { signal }),
  ])
  return {
    label,
    peerId,
    run: view,
    bytesSent: total(node.counters, 'network_bytes_sent_total'),
    bytesReceived: total(node.counters, 'network_bytes_received_total'),
  }
}

/** Sum over a counter's labels, which follow its name in braces. */
function total(counters: Readonly<Record<string, number>>, name: string): number {
  return Object.entries(counters)
    .filter(([key]) => key === name || key.startsWith(`${name}{`))
    .reduce((sum, [, value]) => sum + value, 0)
}
