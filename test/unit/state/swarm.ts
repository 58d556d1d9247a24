/** Nodes with the real state service over a message network and a manual clock. */
import { afterEach } from 'vitest'
import { silentLogger } from '../../../src/log.ts'
import { createMetrics, type Metrics } from '../../../src/metrics.ts'
import { createIdentity, type Identity } from '../../../src/net/identity.ts'
import { hashOf, seededRandom } from '../../../src/random.ts'
import { blankRecord, type PeerRecord } from '../../../src/state/record.ts'
import { encodePush } from '../../../src/state/messages.ts'
import { createStateService } from '../../../src/state/service.ts'
import type { SharedState, StateService } from '../../../src/state/shared-state.ts'
import { createMemoryRecordStore } from '../../../src/store/memory.ts'
import type { RecordStore } from '../../../src/store/record-store.ts'
import { createManualClock, settle, type ManualClock } from '../../manual-clock.ts'
import {
  createMessageNetwork,
  type MessageNetwork,
  type MessageNetworkOptions,
} from './message-network.ts'

export const RUN = 'bafyreirun'

export function record(overrides: Partial<PeerRecord> = {}): PeerRecord {
  return { ...blankRecord('training'), ...overrides }
}

export function identityOf(name: string): Promise<Identity> {
  return createIdentity(Uint8Array.from(Buffer.from(hashOf(name), 'hex')))
}

export interface Stranger {
  peer: string
  identity: Identity
  records: RecordStore
  metrics: Metrics
  service: StateService
}

export interface TestMember extends Stranger {
  state: SharedState
}

export interface TestSwarm {
  clock: ManualClock
  network: MessageNetwork
  /** A node that takes part in `RUN`; a new life of one when `records` of an earlier life are given. */
  member: (name: string, options?: { records?: RecordStore; life?: number }) => Promise<TestMember>
  /** A node that does not. */
  stranger: (name: string) => Promise<Stranger>
  /** Links all of `members` with each other. */
  connectAll: (members: readonly Stranger[]) => void
  close(): Promise<void>
}

export interface TestSwarmOptions extends Omit<MessageNetworkOptions, 'clock' | 'random'> {
  seed?: string
  /** Names of admins. */
  admins?: string[]
}

export function createTestSwarm(options: TestSwarmOptions = {}): TestSwarm {
  const clock = createManualClock()
  const { seed = 'swarm', admins = [] } = options
  const network = createMessageNetwork({ ...options, clock, random: seededRandom(seed, 'network') })
  const services: StateService[] = []

  async function start(name: string, records: RecordStore, life: number): Promise<Stranger> {
    const identity = await identityOf(name)
    const metrics = createMetrics()
    const service = createStateService({
      network: network.join(identity.peerId),
      records,
      identity,
      clock,
      random: seededRandom(seed, name, life),
      logger: silentLogger,
      metrics,
    })
    services.push(service)
    return { peer: identity.peerId, identity, records, metrics, service }
  }

  return {
    clock,
    network,
    async member(name, { records = createMemoryRecordStore(), life = 0 } = {}) {
      const node = await start(name, records, life)
      const identities = await Promise.all(admins.map(identityOf))
      const state = await node.service.open(RUN, { admins: identities.map(({ peerId }) => peerId) })
      return { ...node, state }
    },
    stranger: (name) => start(name, createMemoryRecordStore(), 0),
    connectAll(members) {
      for (const a of members) for (const b of members) if (a !== b) network.connect(a.peer, b.peer)
    },
    async close() {
      const closing = Promise.all(services.map((service) => service.close()))
      // Messages on their way wait for the clock.
      await clock.advance(10_000)
      await closing
    },
  }
}

/** For a test file: starts a swarm per test and closes it afterwards. */
export function useTestSwarm(): (options?: TestSwarmOptions) => TestSwarm {
  const swarms: TestSwarm[] = []
  afterEach(async () => {
    for (const swarm of swarms.splice(0)) await swarm.close()
  })
  return (options) => {
    const swarm = createTestSwarm(options)
    swarms.push(swarm)
    return swarm
  }
}

/** Delivers envelopes as a connected peer that is no node. */
export async function pushTo(
  network: TestSwarm['network'],
  target: string,
  envelopes: Uint8Array[],
  { from = 'mallory', ageMs = 0, run = RUN } = {},
): Promise<void> {
  const { peerId } = await identityOf(from)
  const station = network.join(peerId)
  network.connect(peerId, target)
  const push = encodePush({ run, parts: [{ ageMs, envelopes }], proofs: [] })
  await station.rpc.call(target, 'state/push', push)
  await settle()
}

/** Outer step by peer, as one member sees it. */
export const stepsOf = (state: SharedState): Record<string, number> =>
  Object.fromEntries(state.members().map(({ peer, record: { outerStep } }) => [peer, outerStep]))

export const rejectedOf = (member: Stranger, reason: string): number =>
  member.metrics.read('envelopes_rejected_total', reason)
