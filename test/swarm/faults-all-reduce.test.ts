/** Where all must hold equal parameters: whatever one of them does to some of the others, they are equal again. */
import { expect, test } from 'vitest'
import { systemClock } from '../../src/clock.ts'
import type { ShoalNode } from '../../src/node.ts'
import type { Contribution, RoundKey } from '../../src/run/contribution.ts'
import { chunkRequestSchema, waitingRequestSchema } from '../../src/run/exchange-messages.ts'
import { encodeCbor } from '../../src/store/content.ts'
import { parseMessage } from '../../src/store/message.ts'
import { areEqual, recordCheckpoints, type CheckpointsByStep } from './checkpoints.ts'
import { createRogue, type Rogue } from './rogue.ts'
import { createSwarm, realText, tinySpec, waitForRun } from './swarm.ts'

const text = await realText()

interface Treason {
  /** Whom it gives its contribution to; the others wait for it in vain. */
  givesTo(peer: string): boolean
  /** What it says to `peer` that it has collected; undefined: nothing, as if it were dead. */
  tells(peer: string): string[] | undefined
}

interface Betrayed {
  id: string
  nodes: readonly ShoalNode[]
  checkpoints: CheckpointsByStep
  /** The outer steps of which it has betrayed somebody. */
  betrayals: ReadonlySet<number>
  /** From now on it refuses to take part. */
  end(): void
}

/** Three nodes that train with a traitor among them. */
async function withTraitor(
  seed: string,
  plan: (honest: string[], traitor: string) => Treason,
  work: (betrayed: Betrayed) => Promise<void>,
): Promise<void> {
  const swarm = await createSwarm(3, seed)
  let rogue: Rogue | undefined
  try {
    const { nodes } = swarm
    const [first, ...others] = nodes
    if (first === undefined) throw new Error('three nodes')
    const checkpoints = recordCheckpoints(nodes)
    const limits = { minPeers: 3, roundTimeoutMs: 4_000, checkpointEvery: 1 }
    const settings = { outerSteps: 10_000, innerSteps: 8, averaging: { rule: 'diloco' } } as const
    const { id } = await first.createRun(tinySpec({ ...settings, limits }), text)
    for (const node of others) await node.joinRun(id)
    const network = await swarm.connect(3)
    const honest = nodes.map(({ peerId }) => peerId).sort()
    const treason = plan(honest, network.peerId)
    const betrayals = new Set<number>()
    let ended = false
    const contributions = new Map<number, Promise<Contribution>>()
    const contributionTo = (key: RoundKey): Promise<Contribution> => {
      // As if its parameters were those of the others.
      const base = first.run(id).parametersHash ?? ''
      const made = contributions.get(key.outerStep) ?? rogue!.contribute(key, {}, { base })
      contributions.set(key.outerStep, made)
      return made
    }
    rogue = await createRogue(network, first, id, {
      async offer(request, { peer, signal }) {
        const { run: _, waitMs: __, ...key } = parseMessage(waitingRequestSchema, request, 'offer')
        if (ended || key.phase !== 'outer') return encodeCbor({ refusal: 'quota', outerStep: 0 })
        if (!treason.givesTo(peer)) return never(signal)
        return encodeCbor({ header: (await contributionTo(key)).header })
      },
      async chunk(request) {
        const { run: _, index, ...key } = parseMessage(chunkRequestSchema, request, 'chunk')
        return (await contributionTo(key)).chunks[index] ?? new Uint8Array(0)
      },
      async set(request, { peer, signal }) {
        const { outerStep } = parseMessage(waitingRequestSchema, request, 'set')
        betrayals.add(outerStep)
        const peers = treason.tells(peer)
        return peers === undefined ? never(signal) : encodeCbor({ peers })
      },
    })
    const publish = (): void => void rogue?.publish(first.run(id).outerStep).catch(() => {})
    publish()
    first.onEvent(({ type }) => type === 'outer_step' && publish())
    await work({ id, nodes, checkpoints, betrayals, end: () => void (ended = true) })
  } finally {
    await rogue?.stop()
    await swarm.stop()
  }
}

const never = (signal: AbortSignal): Promise<never> =>
  new Promise((_, reject) => {
    signal.addEventListener('abort', () => reject(new Error('nobody waits any more')))
  })

/** Resolves when `check` holds; the test's time-out is the deadline. */
async function until(check: () => boolean): Promise<void> {
  while (!check()) await systemClock.sleep(20)
}

/** Waits until all nodes are `steps` outer steps further than any is now. Returns where that was. */
async function goOn({ nodes, id }: Betrayed, steps: number): Promise<number> {
  const from = Math.max(...nodes.map((node) => node.run(id).outerStep))
  for (const node of nodes) {
    await waitForRun(node, id, ({ outerStep }) => outerStep >= from + steps)
  }
  return from
}

test('a peer that dies after giving its contribution to some but not to all is left out by all', async () => {
  const treason = ([victim]: string[]): Treason => ({
    givesTo: (peer) => peer === victim,
    tells: () => undefined,
  })
  await withTraitor('some but not all', treason, async (betrayed) => {
    const { betrayals, checkpoints, nodes } = betrayed
    await until(() => betrayals.size >= 2)
    betrayed.end()
    const end = await goOn(betrayed, 2)
    for (const [step, cids] of checkpoints) {
      if (step <= end) expect([step, areEqual(cids)]).toEqual([step, true])
    }
    for (const step of betrayals) expect(checkpoints.get(step + 1)?.size).toBe(nodes.length)
  })
})

test('a peer that tells each another set divides them; the majority repairs it', async () => {
  const treason = (honest: string[], traitor: string): Treason => ({
    givesTo: () => true,
    // The first is told of a set without the others, and takes the traitor for the one that lacks something.
    tells: (peer) => (peer === honest[0] ? [peer, traitor] : [...honest, traitor]),
  })
  await withTraitor('two tongues', treason, async (betrayed) => {
    const { checkpoints } = betrayed
    await until(() => [...checkpoints.values()].some((cids) => !areEqual(cids)))
    betrayed.end()
    const healed = (await goOn(betrayed, 4)) + 4
    await goOn(betrayed, 3)
    for (const step of [healed + 1, healed + 2]) {
      expect([step, checkpoints.get(step)?.size]).toEqual([step, 3])
      expect([step, areEqual(checkpoints.get(step))]).toEqual([step, true])
    }
  })
})
