/**
 * Keeps this node in the network: dials each bootstrap address in the background until it answers, and again when it is
 * lost; remembered peers too while there is nobody at all. Never gives up, never fails; says what changed, once.
 *
 * One bootstrap peer is enough to be in the network, but the others are tried on, ever more rarely: they may be what two
 * halves of a network have in common that were apart for a while.
 */
import type { Multiaddr } from '@multiformats/multiaddr'
import type { Clock } from '../clock.ts'
import { messageOf } from '../errors.ts'
import { DEADLINES } from '../limits.ts'
import type { Logger } from '../log.ts'
import type { Random } from '../random.ts'
import { parseAddress, peerOf } from './addresses.ts'
import type { CachedPeer } from './peer-cache.ts'

const RETRY_FIRST_MS = 1_000
const RETRY_MAX_MS = 60_000
/** Beside a bootstrap peer that is connected. */
const RETRY_BESIDE_MAX_MS = 300_000
/** How often it is looked whether somebody is still there. */
const CHECK_MS = 1_000
/** Bootstrap addresses answer first when they are alive; remembered peers are the second try. */
const HEAD_START_MS = 1_000
/** Remembered peers are dialled until this many are connected, so many at once. */
const REMEMBERED_WANTED = 4
const REMEMBERED_AT_ONCE = 8

export interface DiallerOptions {
  self: string
  bootstrap: readonly Multiaddr[]
  /** Peers of earlier times. */
  remembered: () => readonly CachedPeer[]
  /** Resolves to the peer id at the other end. */
  dial: (addresses: Multiaddr[], signal: AbortSignal) => Promise<string>
  connectedPeers: () => readonly string[]
  clock: Clock
  random: Random
  logger: Logger
}

export interface Dialler {
  /** Whether a first answer may still come from somebody dialled just now. */
  isTrying(): boolean
  stop(): void
}

interface Target {
  address: Multiaddr
  /** Known once connected, or from the address. */
  peer: string | undefined
  state: 'untried' | 'connected' | 'failing'
}

export function createDialler(options: DiallerOptions): Dialler {
  const { logger } = options
  const stopping = new AbortController()
  // A bootstrap node is often on its own list.
  const targets = options.bootstrap
    .map((address): Target => ({ address, peer: peerOf(address), state: 'untried' }))
    .filter(({ peer }) => peer !== options.self)
  let dialling = 0
  const counted = async (work: Promise<void>): Promise<void> => {
    dialling++
    try {
      await work
    } finally {
      dialling--
    }
  }

  const running = [
    ...targets.map((target) => keepTarget(target, targets, options, counted, stopping.signal)),
    keepSomebody(targets, options, counted, stopping.signal),
  ]
  Promise.all(running).catch((thrown: unknown) => {
    if (!stopping.signal.aborted) logger.error('dialler_failed', { message: messageOf(thrown) })
  })
  return {
    isTrying: () => dialling > 0 && targets.every(({ state }) => state !== 'connected'),
    stop: () => stopping.abort(),
  }
}

type Counted = (work: Promise<void>) => Promise<void>

/** Others do not stand in for a bootstrap peer: two neighbours on a LAN would stay by themselves for ever. */
async function keepTarget(
  target: Target,
  targets: readonly Target[],
  options: DiallerOptions,
  counted: Counted,
  stopping: AbortSignal,
): Promise<void> {
  const { clock } = options
  const isAlone = (): boolean => targets.every(({ state }) => state !== 'connected')
  let delayMs = RETRY_FIRST_MS
  for (;;) {
    if (isConnected(target, options)) {
      delayMs = RETRY_FIRST_MS
      await clock.sleep(CHECK_MS, stopping)
      continue
    }
    await counted(dialTarget(target, options, stopping))
    if (isConnected(target, options)) continue
    const wasAlone = isAlone()
    await pause(delayMs, () => isAlone() && !wasAlone, options, stopping)
    // All that was connected is gone: what did not answer then may answer now.
    if (isAlone() && !wasAlone) delayMs = RETRY_FIRST_MS
    else delayMs = Math.min(2 * delayMs, isAlone() ? RETRY_MAX_MS : RETRY_BESIDE_MAX_MS)
  }
}

/** Half of the delay is random, so that a swarm does not return to its bootstrap all at once. */
async function pause(
  delayMs: number,
  isOver: () => boolean,
  { clock, random }: DiallerOptions,
  stopping: AbortSignal,
): Promise<void> {
  const until = clock.now() + (delayMs * (1 + random.uniform())) / 2
  for (let leftMs = until - clock.now(); leftMs > 0 && !isOver(); leftMs = until - clock.now()) {
    await clock.sleep(Math.min(leftMs, CHECK_MS), stopping)
  }
}

function isConnected(target: Target, { connectedPeers, logger }: DiallerOptions): boolean {
  const isThere = target.peer !== undefined && connectedPeers().includes(target.peer)
  if (isThere) changeState(target, 'connected', logger)
  else if (target.state === 'connected') changeState(target, 'untried', logger)
  return isThere
}

/** Remembered peers, while nobody is there. */
async function keepSomebody(
  targets: readonly Target[],
  options: DiallerOptions,
  counted: Counted,
  stopping: AbortSignal,
): Promise<void> {
  const { clock, connectedPeers } = options
  let delayMs = RETRY_FIRST_MS
  for (;;) {
    if (connectedPeers().length > 0 || options.remembered().length === 0) {
      delayMs = RETRY_FIRST_MS
      await clock.sleep(CHECK_MS, stopping)
      continue
    }
    await counted(dialRemembered(targets, options, stopping))
    await pause(delayMs, () => connectedPeers().length > 0, options, stopping)
    delayMs = Math.min(2 * delayMs, RETRY_MAX_MS)
  }
}

async function dialTarget(
  target: Target,
  { clock, dial, logger }: DiallerOptions,
  stopping: AbortSignal,
): Promise<void> {
  const limit = clock.deadline(DEADLINES.dialMs, 'connecting', stopping)
  try {
    target.peer = await dial([target.address], limit)
    changeState(target, 'connected', logger)
  } catch (thrown) {
    stopping.throwIfAborted()
    changeState(target, 'failing', logger, messageOf(thrown))
  }
}

function changeState(
  target: Target,
  state: Target['state'],
  logger: Logger,
  message?: string,
): void {
  if (target.state === state) return
  target.state = state
  const fields = { address: target.address.toString() }
  if (state === 'connected') logger.info('bootstrap_connected', fields)
  else if (state === 'failing') logger.warn('bootstrap_unreachable', { ...fields, message })
  else logger.info('bootstrap_lost', fields)
}

/** Only when there is nobody at all: the bootstrap peers answer first when they are alive. */
async function dialRemembered(
  targets: readonly Target[],
  options: DiallerOptions,
  stopping: AbortSignal,
): Promise<void> {
  const { clock, random, connectedPeers } = options
  if (targets.length > 0) await clock.sleep(HEAD_START_MS, stopping)
  if (connectedPeers().length > 0) return
  const waiting = [...options.remembered()]
  const worker = async (): Promise<void> => {
    while (waiting.length > 0 && connectedPeers().length < REMEMBERED_WANTED) {
      const [entry] = waiting.splice(random.integer(waiting.length), 1)
      if (entry !== undefined) await dialEntry(entry, options, stopping)
    }
  }
  await Promise.all(Array.from({ length: REMEMBERED_AT_ONCE }, worker))
}

async function dialEntry(
  { peer, addresses }: CachedPeer,
  { clock, dial, logger }: DiallerOptions,
  stopping: AbortSignal,
): Promise<void> {
  const limit = clock.deadline(DEADLINES.dialMs, 'connecting', stopping)
  try {
    const parsed = addresses.map((text) => parseAddress(text, 'remembered address'))
    await dial(
      parsed.map((address) =>
        peerOf(address) === peer ? address : address.encapsulate(`/p2p/${peer}`),
      ),
      limit,
    )
  } catch (thrown) {
    stopping.throwIfAborted()
    logger.debug('remembered_peer_unreachable', { peer, message: messageOf(thrown) })
  }
}
