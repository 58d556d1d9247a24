/** A link that drops for a moment in the middle of a round: the round goes on where it was, with the same partner. */
import { expect, test } from 'vitest'
import { systemClock } from '../../src/clock.ts'
import type { Contribution, RoundKey } from '../../src/run/contribution.ts'
import { chunkRequestSchema, waitingRequestSchema } from '../../src/run/exchange-messages.ts'
import type { RoundView } from '../../src/run/view.ts'
import { encodeCbor } from '../../src/store/content.ts'
import { parseMessage } from '../../src/store/message.ts'
import { createLinks } from './links.ts'
import { createRogue, type Rogue } from './rogue.ts'
import { createSwarm, realText, tinySpec, waitForRun } from './swarm.ts'

const text = await realText()

type Moment = 'while it is waited for' | 'between two chunks' | 'while the set is agreed on'

/** 0.6 million parameters: a contribution has 3 chunks. */
const model = { layers: 2, heads: 2, embedding: 150, context: 16 } as const
const OUTAGE_MS = 600

test.each<Moment>(['while it is waited for', 'between two chunks', 'while the set is agreed on'])(
  'a link to a partner that drops %s costs nothing but time',
  async (moment) => {
    const links = createLinks()
    const swarm = await createSwarm(2, `link ${moment}`, { links })
    let partner: Rogue | undefined
    try {
      const [first, second] = swarm.nodes
      if (first === undefined || second === undefined) throw new Error('two nodes')
      const { id } = await first.createRun(
        tinySpec({
          model,
          outerSteps: 10_000,
          innerSteps: 2,
          averaging: { rule: 'diloco' },
          limits: { minPeers: 2, roundTimeoutMs: 20_000 },
        }),
        text,
      )
      await second.joinRun(id)
      const network = await swarm.connect(2)
      const rounds = new Map<number, RoundView>()
      second.onEvent((event) => {
        if (event.type === 'outer_step') rounds.set(event.round.outerStep, event.round)
      })

      let dropped: number | undefined
      /** Requests for each chunk in the round in which the link drops. */
      const asked = new Map<number, number>()
      const drop = async ({ outerStep }: RoundKey): Promise<void> => {
        dropped = outerStep
        links.cut([second.peerId], [network.peerId])
        await systemClock.sleep(OUTAGE_MS)
        links.heal()
      }
      const isTime = (now: Moment, peer: string, { phase }: RoundKey): boolean =>
        now === moment && dropped === undefined && peer === second.peerId && phase === 'outer'
      const contributions = new Map<number, Promise<Contribution>>()
      const contributionTo = (key: RoundKey): Promise<Contribution> => {
        const base = first.run(id).parametersHash ?? ''
        const made = contributions.get(key.outerStep) ?? partner!.contribute(key, {}, { base })
        contributions.set(key.outerStep, made)
        return made
      }
      partner = await createRogue(network, first, id, {
        async offer(request, { peer }) {
          const {
            run: _,
            waitMs: __,
            ...key
          } = parseMessage(waitingRequestSchema, request, 'offer')
          if (isTime('while it is waited for', peer, key)) await drop(key)
          return encodeCbor({ header: (await contributionTo(key)).header })
        },
        async chunk(request, { peer }) {
          const { run: _, index, ...key } = parseMessage(chunkRequestSchema, request, 'chunk')
          const isObserved = moment === 'between two chunks' && peer === second.peerId
          if (isObserved && (dropped ?? key.outerStep) === key.outerStep)
            asked.set(index, (asked.get(index) ?? 0) + 1)
          // The first chunk has arrived when the link breaks under the next one.
          if (index === 1) await systemClock.sleep(300)
          if (index === 1 && isTime('between two chunks', peer, key)) await drop(key)
          if (index === 2 && isObserved && dropped === undefined) await systemClock.sleep(600)
          return (await contributionTo(key)).chunks[index] ?? new Uint8Array(0)
        },
        async set(request, { peer }) {
          const { run: _, waitMs: __, ...key } = parseMessage(waitingRequestSchema, request, 'set')
          if (isTime('while the set is agreed on', peer, key)) await drop(key)
          return encodeCbor({ peers: [first.peerId, second.peerId, network.peerId].sort() })
        },
      })
      const publish = (): void => void partner?.publish(first.run(id).outerStep).catch(() => {})
      publish()
      first.onEvent(({ type }) => type === 'outer_step' && publish())

      const isOver = (): boolean => dropped !== undefined && rounds.has(dropped)
      await waitForRun(second, id, isOver)
      const round = rounds.get(dropped ?? -1)
      expect(round).toMatchObject({ outcome: 'averaged', reasons: [] })
      expect(round?.partners).toEqual([first.peerId, network.peerId].sort())
      expect(round?.durationMs).toBeGreaterThanOrEqual(OUTAGE_MS)
      // What was here before the link dropped is not asked for again.
      if (moment === 'between two chunks') {
        expect(asked.get(0)).toBe(1)
        expect(asked.get(1)).toBe(2)
      }
    } finally {
      await partner?.stop()
      await swarm.stop()
    }
  },
)
