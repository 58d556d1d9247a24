/** A peer that gives what is of no use to anybody: with and without the defence that a manifest can ask for. */
import { expect, test } from 'vitest'
import type { ShoalNode } from '../../src/node.ts'
import { chunkRequestSchema, waitingRequestSchema } from '../../src/run/exchange-messages.ts'
import type { RoundView } from '../../src/run/view.ts'
import { encodeCbor } from '../../src/store/content.ts'
import { parseMessage } from '../../src/store/message.ts'
import { createRogue, type Rogue } from './rogue.ts'
import {
  createSwarm,
  memoryStores,
  realText,
  tinySpec,
  waitForRun,
  type Stores,
  type Swarm,
} from './swarm.ts'

const text = await realText()

interface Beside {
  swarm: Swarm
  first: ShoalNode
  /** What the first node stores. */
  stores: Stores
  id: string
  liar: Rogue
  rounds: RoundView[]
}

/** Two nodes train beside a peer that steps away from the goal, from weights of zero. */
async function withLiar(
  defence: 'none' | 'robust',
  work: (beside: Beside) => Promise<void>,
): Promise<void> {
  const swarm = await createSwarm(0, `robust ${defence}`)
  let liar: Rogue | undefined
  try {
    const stores = memoryStores()
    const first = await swarm.add(0, stores)
    const second = await swarm.add(1)
    const { id } = await first.createRun(
      tinySpec({
        outerSteps: 10_000,
        averaging: { groupSize: 4, defence },
        limits: { minPeers: 2, roundTimeoutMs: 4_000 },
      }),
      text,
    )
    await second.joinRun(id)
    const lieOf = async (key: Parameters<Rogue['contribute']>[0]) => {
      if (liar === undefined) throw new Error('asked before it has told of itself')
      return liar.contribute(key, { pseudoGradient: 0.5 })
    }
    liar = await createRogue(await swarm.connect(2), first, id, {
      async offer(request) {
        const { run: _, waitMs: __, ...key } = parseMessage(waitingRequestSchema, request, 'offer')
        return encodeCbor({ header: (await lieOf(key)).header })
      },
      async chunk(request) {
        const { run: _, index, ...key } = parseMessage(chunkRequestSchema, request, 'chunk')
        return (await lieOf(key)).chunks[index] ?? new Uint8Array(0)
      },
    })
    await work({ swarm, first, stores, id, liar, rounds: follow(first, liar) })
  } finally {
    await liar?.stop()
    await swarm.stop()
  }
}

/** The rounds of a node; the liar claims to be where it is. */
function follow(node: ShoalNode, liar: Rogue): RoundView[] {
  const rounds: RoundView[] = []
  node.onEvent((event) => {
    if (event.type !== 'outer_step') return
    liar.publish(event.outerStep).catch(() => {})
    rounds.push(event.round)
  })
  liar.publish(node.runs()[0]?.outerStep ?? 0).catch(() => {})
  return rounds
}

/** What a node has found against what others have brought, in the order of their rounds. */
function verdictsIn(rounds: readonly RoundView[]): string[] {
  return rounds.flatMap(({ reasons }) =>
    reasons.flatMap((reason) => /rejected \((\w+)\)/.exec(reason)?.[1] ?? []),
  )
}

test('a robust run leaves out a peer whose contributions are of no use, and says so', async () => {
  await withLiar('robust', async ({ first, id, liar, rounds }) => {
    await waitForRun(first, id, () => verdictsIn(rounds).length >= 4)
    for (const { partners } of rounds) expect(partners).not.toContain(liar.peerId)
    const { counters } = first.status()
    const counted = ['probe', 'direction', 'reputation'].map(
      (verdict) => counters[`contributions_rejected_total{${verdict}}`] ?? 0,
    )
    expect(counted.reduce((sum, count) => sum + count)).toBeGreaterThanOrEqual(4)
    // The honest ones go on with each other.
    const averaged = ({ outcome }: RoundView): boolean => outcome === 'averaged'
    await waitForRun(first, id, () => rounds.filter(averaged).length > 1)
  })
})

test('who was found out stays left out when the node starts again', async () => {
  await withLiar('robust', async ({ swarm, first, stores, id, liar, rounds }) => {
    await waitForRun(first, id, () => verdictsIn(rounds).includes('reputation'))
    await first.stop()
    const again = await swarm.add(0, stores)
    await liar.network.connect(again.status().addresses[0] ?? '')
    const after = follow(again, liar)
    await waitForRun(again, id, () => verdictsIn(after).length > 1)
    // While the node was away the time may have run out in which it is left out; then one more lie is enough.
    expect(verdictsIn(after).slice(0, 2)).toContain('reputation')
  })
})

test('a run without defence averages with it: the attack is real', async () => {
  await withLiar('none', async ({ first, id, liar, rounds }) => {
    const isBeside = ({ partners }: RoundView): boolean => partners.includes(liar.peerId)
    await waitForRun(first, id, () => rounds.filter(isBeside).length >= 2)
    expect(verdictsIn(rounds)).toEqual([])
  })
})
