/** Faults within rounds: by a peer that misbehaves, and by links that break. The others go on in time and unharmed. */
import { expect, test } from 'vitest'
import { systemClock } from '../../src/clock.ts'
import { ShoalError } from '../../src/errors.ts'
import type { ShoalNode } from '../../src/node.ts'
import type { Contribution, RoundKey } from '../../src/run/contribution.ts'
import { chunkRequestSchema, waitingRequestSchema } from '../../src/run/exchange-messages.ts'
import type { RunEvent, RunView } from '../../src/run/view.ts'
import { encodeCbor } from '../../src/store/content.ts'
import { parseMessage } from '../../src/store/message.ts'
import { createLinks } from './links.ts'
import { createRogue, type Rogue } from './rogue.ts'
import { createSwarm, realText, tinySpec, waitForRun } from './swarm.ts'

const text = await realText()

type OuterStepEvent = Extract<RunEvent, { type: 'outer_step' }>

/** Every outer step of every node, as it ends. */
function recordSteps(nodes: readonly ShoalNode[]): (OuterStepEvent & { node: string })[] {
  const steps: (OuterStepEvent & { node: string })[] = []
  for (const node of nodes) {
    node.onEvent((event) => {
      if (event.type === 'outer_step') steps.push({ ...event, node: node.peerId })
    })
  }
  return steps
}

const never = (signal: AbortSignal): Promise<never> =>
  new Promise((_, reject) => {
    signal.addEventListener('abort', () => reject(new Error('nobody waits any more')))
  })

interface Misdeed {
  /** Whether its contribution should be averaged all the same. */
  counts?: boolean
  /** The answer to an offer. */
  offer?: (contribution: Contribution, signal: AbortSignal) => Promise<unknown>
  /** The answer to a request for a chunk. */
  chunk?: (bytes: Uint8Array, index: number, signal: AbortSignal) => Promise<Uint8Array>
}

/** What is sent under the hash that the header promises, but is no healthy vector. */
const poisoned = Symbol('poisoned')

const misdeeds: Record<string, Misdeed> = {
  'none, to be averaged with': { counts: true },
  'never sends': { offer: (_, signal) => never(signal) },
  'sends a header and nothing else': { chunk: (_, __, signal) => never(signal) },
  'stops while sending': {
    chunk: async (bytes, index, signal) => (index === 0 ? bytes : never(signal)),
  },
  'sends slowly': {
    counts: true,
    chunk: async (bytes) => systemClock.sleep(200).then(() => bytes),
  },
  'sends other bytes than it has promised': {
    chunk: async (bytes) => bytes.map((byte, index) => (index === 7 ? byte ^ 1 : byte)),
  },
  'sends too little': { chunk: async (bytes) => bytes.subarray(4) },
  'sends too much': { chunk: async (bytes) => new Uint8Array([...bytes, 0, 0, 0, 0]) },
  'sends what is not a number': {},
  'is of another model': {
    offer: async ({ header }) => ({ header: { ...header, schemaHash: 'f'.repeat(64) } }),
  },
  'is of another run': {
    offer: async ({ header }) => ({ header: { ...header, run: 'bafyother' } }),
  },
  'is of another step': {
    offer: async ({ header }) => ({ header: { ...header, outerStep: header.outerStep + 1 } }),
  },
  'has another number of chunks': {
    offer: async ({ header }) => ({ header: { ...header, digests: header.digests.slice(1) } }),
  },
  'claims a weight that is no number of tokens': {
    offer: async ({ header }) => ({ header: { ...header, weight: -1 } }),
  },
  'answers nonsense': { offer: async () => ({ nonsense: true }) },
  'refuses without a reason': { offer: async () => ({ refusal: 'quota', outerStep: 0 }) },
  'says that it is never ready': { offer: async () => ({ refusal: 'not_ready', outerStep: 0 }) },
  fails: { offer: () => Promise.reject(new Error('a bug')) },
  'has forgotten its contribution': {
    chunk: () => Promise.reject(new ShoalError('not_found', 'no longer kept')),
  },
}

test('a partner may fail in any way: the others average without it, in time', async () => {
  const roundTimeoutMs = 4_000
  const swarm = await createSwarm(3, 'misdeeds')
  let rogue: Rogue | undefined
  try {
    const steps = recordSteps(swarm.nodes)
    const [first, ...others] = swarm.nodes
    if (first === undefined) throw new Error('three nodes')
    const codecs = { pseudoGradientCodec: 'fp32', parametersCodec: 'fp32' } as const
    const { id } = await first.createRun(
      tinySpec({
        outerSteps: 10_000,
        innerSteps: 8,
        averaging: { groupSize: 4, ...codecs },
        limits: { minPeers: 3, roundTimeoutMs },
      }),
      text,
    )
    for (const node of others) await node.joinRun(id)

    const waiting = Object.keys(misdeeds)
    const done = new Map<number, string>()
    const contributions = new Map<number, Promise<Contribution>>()
    const misdeedOf = ({ outerStep }: RoundKey): string | undefined => {
      const known = done.get(outerStep)
      if (known !== undefined) return known
      const next = waiting.shift()
      if (next !== undefined) done.set(outerStep, next)
      return next
    }
    const contributionTo = (key: RoundKey, misdeed: string): Promise<Contribution> => {
      const pseudoGradient = misdeed === 'sends what is not a number' ? poisoned : 0
      const known = contributions.get(key.outerStep)
      if (known !== undefined) return known
      const made = makeContribution(rogue, key, pseudoGradient)
      contributions.set(key.outerStep, made)
      return made
    }
    rogue = await createRogue(await swarm.connect(3), first, id, {
      async offer(request, { signal }) {
        const { run: _, waitMs: __, ...key } = parseMessage(waitingRequestSchema, request, 'offer')
        const name = misdeedOf(key)
        if (name === undefined) return encodeCbor({ refusal: 'quota', outerStep: 0 })
        const contribution = await contributionTo(key, name)
        const answer = await misdeeds[name]?.offer?.(contribution, signal)
        return encodeCbor(answer ?? { header: contribution.header })
      },
      async chunk(request, { signal }) {
        const { run: _, index, ...key } = parseMessage(chunkRequestSchema, request, 'chunk')
        const name = misdeedOf(key) ?? ''
        const bytes = (await contributionTo(key, name)).chunks[index] ?? new Uint8Array(0)
        return (await misdeeds[name]?.chunk?.(bytes, index, signal)) ?? bytes
      },
    })
    const { peerId } = rogue
    const publish = (outerStep: number): Promise<void> | undefined => rogue?.publish(outerStep)
    await publish(first.run(id).outerStep)
    first.onEvent((event) => {
      if (event.type === 'outer_step') publish(event.outerStep)?.catch(() => {})
    })
    // All misdeeds are done, and their rounds are over.
    const last = (): number => Math.max(...done.keys())
    await waitForRun(first, id, () => waiting.length === 0)
    for (const node of swarm.nodes)
      await waitForRun(node, id, ({ outerStep }) => outerStep > last())

    for (const [outerStep, name] of done) {
      const ofStep = steps.filter((step) => step.round.outerStep === outerStep)
      const withRogue = ofStep.filter(({ round }) => round.partners.includes(peerId))
      const told = ofStep.flatMap(({ round }) => round.reasons).join('; ')
      if (misdeeds[name]?.counts === true) expect(withRogue, `${name}: ${told}`).not.toEqual([])
      else expect(withRogue, name).toEqual([])
      if (misdeeds[name]?.counts !== true) expect(told, name).toContain(peerId.slice(-8))
    }
    // Nobody waited as long as a round may last, but where the swarm had not found its pace yet.
    for (const { round } of steps) expect(round.durationMs).toBeLessThan(roundTimeoutMs + 500)
    const averaged = steps.filter(({ round }) => round.outcome === 'averaged')
    expect(averaged.length).toBeGreaterThan(steps.length / 2)
    for (const node of swarm.nodes) {
      const { loss, lossStart, status } = node.run(id)
      expect(status).toBe('training')
      expect(loss).toBeLessThan(lossStart ?? 0)
    }
  } finally {
    await rogue?.stop()
    await swarm.stop()
  }
})

/** With `poisoned` NaNs, whose chunks nevertheless match their hashes: what no encoder of ours makes. */
async function makeContribution(
  rogue: Rogue | undefined,
  key: RoundKey,
  pseudoGradient: number | typeof poisoned,
): Promise<Contribution> {
  if (rogue === undefined) throw new Error('asked before it has told of itself')
  if (pseudoGradient !== poisoned) return rogue.contribute(key, { pseudoGradient })
  const healthy = await rogue.contribute(key)
  const chunks = healthy.chunks.map((chunk) => {
    const bytes = new Uint8Array(chunk.length)
    new DataView(bytes.buffer).setFloat32(40, Number.NaN, true)
    return bytes
  })
  const digests = await Promise.all(
    chunks.map(async (bytes) => new Uint8Array(await crypto.subtle.digest('SHA-256', bytes))),
  )
  return { ...healthy, chunks, header: { ...healthy.header, digests } }
}

test('a receiver that vanishes in the middle of a contribution harms nobody, and comes back', async () => {
  const links = createLinks()
  const swarm = await createSwarm(3, 'receiver', { links })
  let sender: Rogue | undefined
  try {
    const [first, second, third] = swarm.nodes
    if (!first || !second || !third) throw new Error('three nodes')
    const { id } = await first.createRun(
      tinySpec({
        outerSteps: 10_000,
        innerSteps: 8,
        averaging: { groupSize: 4 },
        limits: { minPeers: 3, roundTimeoutMs: 3_000 },
      }),
      text,
    )
    for (const node of [second, third]) await node.joinRun(id)
    const everybody = swarm.nodes.map(({ peerId }) => peerId)
    const vanished = Promise.withResolvers<number>()
    sender = await createRogue(await swarm.connect(3), first, id, {
      async offer(request) {
        const { run: _, waitMs: __, ...key } = parseMessage(waitingRequestSchema, request, 'offer')
        const contribution = await makeContribution(sender, key, 0)
        return encodeCbor({ header: contribution.header })
      },
      async chunk(request, { peer }) {
        const { run: _, index, ...key } = parseMessage(chunkRequestSchema, request, 'chunk')
        if (peer === third.peerId) {
          links.cut([third.peerId], [...everybody, sender?.peerId ?? ''])
          vanished.resolve(key.outerStep)
        }
        return (await makeContribution(sender, key, 0)).chunks[index] ?? new Uint8Array(0)
      },
    })
    const publish = (outerStep: number): Promise<void> | undefined => sender?.publish(outerStep)
    await publish(first.run(id).outerStep)
    first.onEvent((event) => {
      if (event.type === 'outer_step') publish(event.outerStep)?.catch(() => {})
    })
    const atStep = await vanished.promise
    const isFurther = ({ outerStep, rounds }: RunView): boolean =>
      outerStep > atStep + 4 && rounds.averaged > 0
    const views = await Promise.all([first, second].map((node) => waitForRun(node, id, isFurther)))
    for (const { round } of views) expect(round?.partners).not.toContain(third.peerId)
    // It goes on alone, with what it had committed.
    await waitForRun(
      third,
      id,
      ({ outerStep, round }) => outerStep > atStep && round?.partners.length === 0,
    )
    await sender.stop()
    links.heal()
    const isTogether = ({ round }: RunView): boolean =>
      round?.partners.some((peer) => everybody.includes(peer)) === true
    await waitForRun(third, id, isTogether)
  } finally {
    await sender?.stop()
    await swarm.stop()
  }
})
