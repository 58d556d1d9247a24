/**
 * hivemind's fault cases of an all-reduce (tests/test_allreduce_fault_tolerance.py): of five peers two fail, each in its
 * way, in one round. Where hivemind's members reduce a part for each other, here each combines what it has and tells
 * whose contributions these are: that is the reducing in which one may fail or be slow.
 */
import { expect, test } from 'vitest'
import { systemClock } from '../../src/clock.ts'
import { ShoalError } from '../../src/errors.ts'
import type { Network } from '../../src/net/network.ts'
import type { ShoalNode } from '../../src/node.ts'
import type { Contribution, RoundKey } from '../../src/run/contribution.ts'
import { chunkRequestSchema, waitingRequestSchema } from '../../src/run/exchange-messages.ts'
import type { RoundView, RunView } from '../../src/run/view.ts'
import { encodeCbor } from '../../src/store/content.ts'
import { parseMessage } from '../../src/store/message.ts'
import { areEqual, recordCheckpoints } from './checkpoints.ts'
import { createRogue, type Rogue } from './rogue.ts'
import { createSwarm, realText, tinySpec, waitForRun } from './swarm.ts'

const text = await realText()

const FAULTS = [
  'none',
  'fails before sending',
  'sends slowly',
  'fails while sending',
  'reduces slowly',
  'fails while reducing',
  'cancels',
] as const
type Fault = (typeof FAULTS)[number]

const PAIRS: readonly (readonly [Fault, Fault])[] = [
  ['none', 'fails before sending'],
  ['fails before sending', 'fails before sending'],
  ['sends slowly', 'fails while sending'],
  ['fails while sending', 'fails before sending'],
  ['reduces slowly', 'fails while sending'],
  ['fails while reducing', 'fails while reducing'],
  ['none', 'cancels'],
]

/** 0.6 million parameters: a contribution has 3 chunks, so that one may fail between two of them. */
const model = { layers: 2, heads: 2, embedding: 150, context: 16 } as const
/** Who waits for a slow peer takes so long, far more than a round may. */
const SLOW_MS = 10_000
const ROUND_TIMEOUT_MS = 6_000

/** A peer that in the round of an outer step behaves as `faultIn` says. */
async function createFaulty(
  network: Network,
  node: ShoalNode,
  id: string,
  faultIn: (key: RoundKey) => Fault,
  everybody: (outerStep: number) => string[],
): Promise<Rogue> {
  const contributions = new Map<number, Promise<Contribution>>()
  const contributionTo = (key: RoundKey): Promise<Contribution> => {
    const base = node.run(id).parametersHash ?? ''
    const made = contributions.get(key.outerStep) ?? rogue.contribute(key, {}, { base })
    contributions.set(key.outerStep, made)
    return made
  }
  const rogue: Rogue = await createRogue(network, node, id, {
    async offer(request) {
      const { run: _, waitMs: __, ...key } = parseMessage(waitingRequestSchema, request, 'offer')
      if (faultIn(key) === 'fails before sending') throw new Error('a bug')
      return encodeCbor({ header: (await contributionTo(key)).header })
    },
    async chunk(request, { signal }) {
      const { run: _, index, ...key } = parseMessage(chunkRequestSchema, request, 'chunk')
      const fault = faultIn(key)
      if (fault === 'sends slowly') await systemClock.sleep(SLOW_MS, signal)
      if (fault === 'fails while sending' && index > 0) throw new Error('a bug')
      if (fault === 'cancels') throw new ShoalError('not_found', 'no longer kept')
      return (await contributionTo(key)).chunks[index] ?? new Uint8Array(0)
    },
    async set(request, { signal }) {
      const { run: _, waitMs: __, ...key } = parseMessage(waitingRequestSchema, request, 'set')
      const fault = faultIn(key)
      if (fault === 'reduces slowly') await systemClock.sleep(SLOW_MS, signal)
      if (fault === 'fails while reducing') throw new Error('a bug')
      return encodeCbor({ peers: everybody(key.outerStep) })
    },
  })
  return rogue
}

test('two of five peers fail in any pair of ways: the others average, alike and in time', async () => {
  const swarm = await createSwarm(3, 'pairs')
  const rogues: Rogue[] = []
  try {
    const { nodes } = swarm
    const [first, ...others] = nodes
    if (first === undefined) throw new Error('three nodes')
    const checkpoints = recordCheckpoints(nodes)
    const rounds = new Map<number, Map<string, RoundView>>()
    for (const node of nodes) {
      node.onEvent((event) => {
        if (event.type !== 'outer_step') return
        const { round } = event
        const ofStep = rounds.get(round.outerStep) ?? new Map<string, RoundView>()
        rounds.set(round.outerStep, ofStep.set(node.peerId, round))
      })
    }
    const limits = { minPeers: 3, roundTimeoutMs: ROUND_TIMEOUT_MS, checkpointEvery: 1 }
    const averaging = { rule: 'diloco' } as const
    const { id } = await first.createRun(
      tinySpec({ model, outerSteps: 10_000, innerSteps: 2, averaging, limits }),
      text,
    )
    for (const node of others) await node.joinRun(id)
    // By then they have found their pace.
    const isInPace = ({ rounds: { averaged } }: RunView): boolean => averaged > 2
    for (const node of nodes) await waitForRun(node, id, isInPace)

    const waiting = [...PAIRS]
    const done = new Map<number, readonly [Fault, Fault]>()
    const pairIn = ({ outerStep, phase }: RoundKey): readonly [Fault, Fault] => {
      if (phase !== 'outer') return ['none', 'none']
      const known = done.get(outerStep)
      // Between two pairs there is a round in which nobody fails.
      if (known !== undefined || done.has(outerStep - 1)) return known ?? ['none', 'none']
      const next = waiting.shift()
      if (next !== undefined) done.set(outerStep, next)
      return next ?? ['none', 'none']
    }
    const networks = [await swarm.connect(3), await swarm.connect(4)]
    const counted = (key: number): string[] =>
      networks.filter((_, index) => contributes(done.get(key)?.[index])).map(({ peerId }) => peerId)
    const honest = nodes.map(({ peerId }) => peerId)
    for (const [index, network] of networks.entries()) {
      const faultIn = (key: RoundKey): Fault => pairIn(key)[index] ?? 'none'
      const everybody = (step: number): string[] => [...honest, ...counted(step)].sort()
      rogues.push(await createFaulty(network, first, id, faultIn, everybody))
    }
    const publish = (): void => {
      for (const rogue of rogues) void rogue.publish(first.run(id).outerStep).catch(() => {})
    }
    publish()
    first.onEvent(({ type }) => type === 'outer_step' && publish())
    await waitForRun(first, id, () => waiting.length === 0)
    const last = Math.max(...done.keys())
    for (const node of nodes) await waitForRun(node, id, ({ outerStep }) => outerStep > last + 1)

    for (const [outerStep, pair] of done) {
      const name = pair.join(', ')
      const ofStep = rounds.get(outerStep)
      expect(ofStep?.size, name).toBe(nodes.length)
      for (const { outcome, partners, durationMs } of ofStep?.values() ?? []) {
        expect(outcome, name).toBe('averaged')
        expect(partners.filter((peer) => honest.includes(peer)).length, name).toBe(2)
        expect(durationMs, name).toBeLessThan(SLOW_MS)
      }
      expect([name, checkpoints.get(outerStep + 1)?.size]).toEqual([name, nodes.length])
      expect([name, areEqual(checkpoints.get(outerStep + 1))]).toEqual([name, true])
    }
  } finally {
    await Promise.all(rogues.map((rogue) => rogue.stop()))
    await swarm.stop()
  }
})

/** Whether all get the whole contribution of a peer with this fault. */
function contributes(fault: Fault | undefined): boolean {
  return fault === undefined || ['none', 'reduces slowly', 'fails while reducing'].includes(fault)
}
