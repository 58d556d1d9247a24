/** Shared state over real networks (libp2p on the in-memory transport): a line of eight, cut in the middle and joined. */
import { onTestFinished, describe, expect, test } from 'vitest'
import { systemClock } from '../../src/clock.ts'
import { silentLogger } from '../../src/log.ts'
import { createMetrics, type Metrics } from '../../src/metrics.ts'
import { createIdentity, type Identity } from '../../src/net/identity.ts'
import type { Network } from '../../src/net/network.ts'
import { seededRandom } from '../../src/random.ts'
import { createStateService } from '../../src/state/service.ts'
import type { SharedState, StateService } from '../../src/state/shared-state.ts'
import { createMemoryRecordStore } from '../../src/store/memory.ts'
import type { RecordStore } from '../../src/store/record-store.ts'
import { addressOf, startMemoryNetwork, until } from '../unit/net/memory-network.ts'
import { record, RUN, stepsOf } from '../unit/state/swarm.ts'

const TTL_MS = 2_000

interface Member {
  identity: Identity
  network: Network
  records: RecordStore
  service: StateService
  state: SharedState
  metrics: Metrics
}

let lives = 0

async function startMember(
  admins: readonly string[],
  identity: Identity,
  records: RecordStore = createMemoryRecordStore(),
): Promise<Member> {
  // A DHT of its own keeps a node from finding others than those it is told of: the line stays one.
  const dhtProtocol = `/test/${lives++}/kad/1.0.0`
  const network = await startMemoryNetwork({ identity, dhtProtocol })
  const metrics = createMetrics()
  const service = createStateService({
    network,
    identity,
    records,
    metrics,
    clock: systemClock,
    random: seededRandom('state', identity.peerId, lives),
    logger: silentLogger,
    ttlMs: TTL_MS,
    heartbeatMs: TTL_MS / 4,
    // Only pushes, and exchanges on connect: what arrives does not wait for the next interval.
    syncIntervalMs: 3_600_000,
  })
  onTestFinished(() => service.close())
  const state = await service.open(RUN, { admins })
  return { identity, network, records, service, state, metrics }
}

async function connect(a: Member | undefined, b: Member | undefined): Promise<void> {
  await a!.network.connect(addressOf(b!.network))
}

const namesOf = (members: readonly Member[]): string[] =>
  members.map(({ identity }) => identity.peerId).sort()

const seenBy = ({ state }: Member): string[] => state.members().map(({ peer }) => peer)

describe('eight nodes in a line', () => {
  test('agree, part, expire to each other, and agree again', async () => {
    const identities = await Promise.all(
      Array.from({ length: 8 }, (_, index) => createIdentity(new Uint8Array(32).fill(index + 1))),
    )
    const admins = [identities[0]!.peerId, identities[7]!.peerId]
    const line = await Promise.all(identities.map((identity) => startMember(admins, identity)))
    for (let index = 0; index < 7; index++) await connect(line[index], line[index + 1])
    const linkCounts = (): string =>
      line.map(({ network }) => network.connectedPeers().length).join(' ')
    await until(() => linkCounts() === '1 2 2 2 2 2 2 1')

    await Promise.all(
      line.map(({ state }, index) => state.publish(record({ outerStep: index, tokens: 1e9 }))),
    )
    const all = namesOf(line)
    const isRight = ({ state }: Member): boolean => {
      const steps = stepsOf(state)
      return line.every(({ identity }, index) => steps[identity.peerId] === index)
    }
    await until(() => line.every(isRight))

    await line[0]!.state.publish(record({ outerStep: 100 }))
    await until(() => stepsOf(line[7]!.state)[line[0]!.identity.peerId] === 100)

    // The fourth node dies: two halves that cannot hear each other.
    const dead = line[3]!
    await dead.service.close()
    await dead.network.stop()
    const left = line.slice(0, 3)
    const right = line.slice(4)
    await line[0]!.state.writeBoard('paused', true)
    await line[7]!.state.writeBoard('paused', false)
    await line[7]!.state.writeBoard('note', 'from the right')
    const halfOf = (member: Member): Member[] => (left.includes(member) ? left : right)
    await until(() =>
      [...left, ...right].every(
        (member) => seenBy(member).join() === namesOf(halfOf(member)).join(),
      ),
    )
    await until(() => line[4]!.state.board()['note'] === 'from the right')
    expect(line[2]!.state.board()).toEqual({ paused: true })
    expect(line[4]!.state.board()).toEqual({ note: 'from the right', paused: false })

    // Its next life joins them again.
    const again = await startMember(admins, dead.identity, dead.records)
    await again.state.publish(record({ outerStep: 33 }))
    await connect(again, left[2])
    await connect(again, right[0])
    const healed = [...left, again, ...right]
    await until(() => healed.every((member) => seenBy(member).join() === all.join()))
    // Of two writes with equal counters that of the higher peer id holds.
    const paused = admins[0]! > admins[1]!
    await until(() => healed.every(({ state }) => state.board()['paused'] === paused))
    for (const { state } of healed) {
      expect(state.board()).toEqual({ note: 'from the right', paused })
      expect(stepsOf(state)[dead.identity.peerId]).toBe(33)
      expect(state.equivocators()).toEqual([])
    }
    // Nobody honest has sent anything that is a fault.
    for (const { metrics } of healed) {
      const reasons = Object.keys(metrics.snapshot()).filter((key) => key.includes('rejected'))
      for (const reason of reasons) expect(reason).toMatch(/\{(stale|expired)\}$/)
    }
  })
})
