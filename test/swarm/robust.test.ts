/** A peer that gives what is of no use to anybody: with and without the defence that a manifest can ask for. */
import { expect, test } from 'vitest'
import type { ShoalNode } from '../../src/node.ts'
import { chunkRequestSchema, waitingRequestSchema } from '../../src/run/exchange-messages.ts'
import type { RoundView } from '../../src/run/view.ts'
import { encodeCbor } from '../../src/store/content.ts'
import { parseMessage } from '../../src/store/message.ts'
import { createRogue, type Rogue } from './rogue.ts'
import { createSwarm, realText, tinySpec, waitForRun } from './swarm.ts'

const text = await realText()

interface Course {
  liar: string
  rounds: RoundView[]
  node: ShoalNode
  rejected: number
}

/** Trains beside a peer that steps away from the goal, from weights of zero. */
async function trainBesideLiar(defence: 'none' | 'robust', rounds: number): Promise<Course> {
  const swarm = await createSwarm(2, `robust ${defence}`)
  let liar: Rogue | undefined
  try {
    const [first, second] = swarm.nodes
    if (first === undefined || second === undefined) throw new Error('two nodes')
    const { id } = await first.createRun(
      tinySpec({
        outerSteps: 10_000,
        averaging: { groupSize: 4, defence },
        limits: { minPeers: 2, roundTimeoutMs: 4_000 },
      }),
      text,
    )
    await second.joinRun(id)
    const others: RoundView[] = []
    first.onEvent((event) => {
      if (event.type !== 'outer_step') return
      liar?.publish(event.outerStep).catch(() => {})
      others.push(event.round)
    })
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
    const { peerId } = liar
    await liar.publish(first.run(id).outerStep)
    const met = ({ partners, reasons }: RoundView): boolean =>
      partners.includes(peerId) || reasons.some((reason) => reason.includes('rejected ('))
    await waitForRun(first, id, () => others.filter(met).length >= rounds)
    const counters = Object.entries(first.status().counters)
    const rejected = counters
      .filter(([name]) =>
        /^contributions_rejected_total\{(probe|direction|reputation)\}$/.test(name),
      )
      .reduce((sum, [, count]) => sum + count, 0)
    return { liar: peerId, rounds: others, node: first, rejected }
  } finally {
    await liar?.stop()
    await swarm.stop()
  }
}

test('a robust run leaves out a peer whose contributions are of no use, and says so', async () => {
  const { liar, rounds, rejected } = await trainBesideLiar('robust', 4)
  for (const { partners } of rounds) expect(partners).not.toContain(liar)
  expect(rejected).toBeGreaterThanOrEqual(4)
  // The honest ones go on with each other.
  expect(rounds.filter(({ outcome }) => outcome === 'averaged').length).toBeGreaterThan(1)
})

test('a run without defence averages with it: the attack is real', async () => {
  const { liar, rounds, rejected } = await trainBesideLiar('none', 2)
  expect(rounds.filter(({ partners }) => partners.includes(liar)).length).toBeGreaterThanOrEqual(2)
  expect(rejected).toBe(0)
})
