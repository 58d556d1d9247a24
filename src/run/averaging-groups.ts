/**
 * Averages beside any run: for programs that bring an algorithm of their own.
 *
 * Contract. Whoever gives a vector to a round of a group gets the weighted mean of all that were given, if there are
 * enough. A group is a name; its members find each other through the DHT, and each tells in a signed record which round
 * it gives to. All members of a round that had each other's vectors get the same mean, bit by bit; one that comes when
 * the others are done gets theirs. A round that is repeated gets its result again. Who does not give for a minute
 * leaves the group.
 */
import { utf8ToBytes } from '@noble/hashes/utils.js'
import { raceSignal, withDeadline, type Clock } from '../clock.ts'
import { asFault, ShoalError } from '../errors.ts'
import { DEADLINES, LIMITS } from '../limits.ts'
import type { Logger } from '../log.ts'
import type { Network } from '../net/network.ts'
import { weightedMean } from '../optim/combine.ts'
import { hashOf } from '../random.ts'
import { blankRecord } from '../state/record.ts'
import type { Member, SharedState, StateService } from '../state/shared-state.ts'
import { cidOf } from '../store/content.ts'
import { contributionPlan, decodeSlice, encodeContribution } from './contribution.ts'
import type { Contribution } from './contribution.ts'
import type { Exchange, ExchangeService } from './exchange.ts'
import { averagingSchema, type Averaging } from './manifest.ts'
import { discoverMembers } from './members-discovery.ts'
import { partnersOf } from './partners.ts'
import { performRound } from './round.ts'
import { slicesInTurns } from './slices.ts'

export const AVERAGING_CODECS = averagingSchema.shape.parametersCodec.unwrap().options

/** What a peer gives to one round of a group. */
export interface AverageInput {
  group: string
  /** Counts up; what a group gives to one round is averaged together. */
  round: number
  /** Of the names and shapes of the tensors; only equal ones are averaged. */
  schemaHash: string
  parameters: Float32Array
  weight: number
  /** So many peers are needed, this one included. */
  minPeers: number
  /** Those who give are averaged in groups of so many, drawn anew in every round; all together when left out. */
  groupSize?: number | undefined
  /** How long to wait for them. */
  waitMs: number
  codec: Averaging['parametersCodec']
}

/** The result of one average. */
export interface Average {
  parameters: Float32Array
  /** Peers whose vectors are in it, ordered. */
  peers: string[]
}

/** Averages of tensors beside any run, among the peers that give to a group of one name. */
export interface AveragingGroups {
  /**
   * Throws `timeout` when too few peers came, `conflict` for a round that is past or under way, `schema_mismatch` for
   * a repeated one with other tensors, `limit_exceeded` for too many groups or elements.
   */
  average(input: AverageInput, signal: AbortSignal): Promise<Average>
  close(): Promise<void>
}

export interface AveragingDependencies {
  network: Network
  states: StateService
  exchanges: ExchangeService
  clock: Clock
  logger: Logger
}

/** Without a new round for so long a member has left. */
const LINGER_MS = 60_000
/** Enough peers are there; so much longer, and they know the same of each other. */
const SETTLE_MS = 500
/** A member that has said that it gives may still be busy; so long it is waited for at least. */
const PATIENCE_MS = 15_000

interface Group {
  id: string
  state: SharedState
  exchange: Exchange
  /** Fires when the group is left. */
  ending: AbortController
  discovery: Promise<void>
  round: number
  /** Under way, or the newest result. */
  result: Promise<Average> | undefined
  /** Of the tensors of `result`. */
  schemaHash: string
  isBusy: boolean
  usedMs: number
}

export function createAveragingGroups(deps: AveragingDependencies): AveragingGroups {
  const { clock, logger } = deps
  const groups = new Map<string, Promise<Group>>()

  async function leave(name: string, group: Group): Promise<void> {
    groups.delete(name)
    group.ending.abort(new ShoalError('aborted', 'the averaging group was left'))
    await group.discovery
    group.exchange.close()
    await group.state.close()
  }

  async function leaveWhenIdle(name: string, group: Group): Promise<void> {
    while (group.isBusy || clock.now() - group.usedMs < LINGER_MS) {
      await clock.sleep(LINGER_MS, group.ending.signal)
    }
    await leave(name, group)
  }

  async function enter(name: string): Promise<Group> {
    if (groups.size >= LIMITS.averagingGroups) {
      throw new ShoalError('limit_exceeded', `this node is in ${groups.size} averaging groups`)
    }
    const entering = openGroup(name, deps)
    groups.set(name, entering)
    try {
      const group = await entering
      leaveWhenIdle(name, group).catch((thrown: unknown) => {
        if (!group.ending.signal.aborted) {
          logger.warn('averaging_group_not_left', { group: name, reason: asFault(thrown).message })
        }
      })
      return group
    } catch (thrown) {
      groups.delete(name)
      throw thrown
    }
  }

  return {
    async average(input, signal) {
      if (input.parameters.length > LIMITS.averagedElements) {
        throw new ShoalError(
          'limit_exceeded',
          `${input.parameters.length} elements are more than ${LIMITS.averagedElements}: average them in parts`,
        )
      }
      const group = await (groups.get(input.group) ?? enter(input.group))
      if (input.round === group.round && group.result !== undefined) {
        if (input.schemaHash !== group.schemaHash) throw otherTensors(input)
        return raceSignal(group.result, signal)
      }
      if (group.isBusy || input.round < group.round) {
        const why = group.isBusy ? 'is under way' : 'was the newest'
        const message = `round ${group.round} of group ${input.group} ${why}: give to a later one`
        throw new ShoalError('conflict', message, { details: { round: group.round } })
      }
      return beginRound(group, input, deps, signal)
    },
    async close() {
      const open = await Promise.allSettled(groups.values())
      const entered = open.flatMap((group) => (group.status === 'fulfilled' ? [group.value] : []))
      await Promise.allSettled(entered.map((group) => leave(group.id, group)))
    },
  }
}

async function openGroup(name: string, deps: AveragingDependencies): Promise<Group> {
  const { network, states, exchanges, clock, logger } = deps
  const cid = await cidOf(utf8ToBytes(`shoal: averaging group, version 1: ${name}`), 'raw')
  const id = cid.toString()
  const state = await states.open(id, { admins: [] })
  const ending = new AbortController()
  const { signal } = ending
  const self = network.peerId
  const membership = { others: () => othersOf(state, self) }
  const seeker = { network, membership, state, clock, logger, id, self }
  const group: Group = {
    id,
    state,
    exchange: exchanges.open(id, () => group.round),
    ending,
    discovery: discoverMembers(seeker, cid, signal),
    round: -1,
    result: undefined,
    schemaHash: '',
    isBusy: false,
    usedMs: clock.now(),
  }
  return group
}

function othersOf(state: SharedState, self: string): Member[] {
  return state.members().filter(({ peer }) => peer !== self)
}

async function beginRound(
  group: Group,
  input: AverageInput,
  deps: AveragingDependencies,
  signal: AbortSignal,
): Promise<Average> {
  group.round = input.round
  group.isBusy = true
  const result = averageRound(group, input, deps, AbortSignal.any([signal, group.ending.signal]))
  group.result = result
  group.schemaHash = input.schemaHash
  try {
    return await result
  } catch (thrown) {
    // It came to nothing, so it may be tried again.
    group.result = undefined
    group.round = input.round - 1
    throw thrown
  } finally {
    group.isBusy = false
    group.usedMs = deps.clock.now()
  }
}

async function averageRound(
  group: Group,
  input: AverageInput,
  { network, clock }: AveragingDependencies,
  signal: AbortSignal,
): Promise<Average> {
  const { parameters, round, codec, groupSize = LIMITS.groupPeers } = input
  const self = network.peerId
  const averaging = averagingSchema.parse({ parametersCodec: codec })
  const key = { outerStep: round, phase: 'merge-0' } as const
  const own = await encodeContribution(
    {
      peer: self,
      run: group.id,
      key,
      schemaHash: hashOf(input.schemaHash, codec),
      weight: input.weight,
      plan: contributionPlan(averaging, key.phase, [0, parameters.length]),
      vectors: { parameters },
    },
    clock,
  )
  // Before it is announced, so that nobody asks in vain.
  group.exchange.offer(key, own)
  await group.state.publish(blankRecord('waiting', round))
  const members = await membersOfRound(group, input, self, clock, signal)
  const result = await performRound(group.exchange, clock, {
    key,
    own,
    partners: partnersOf(self, group.id, round, members, groupSize),
    exact: true,
    staleness: 0,
    patienceMs: Math.max(PATIENCE_MS, input.waitMs),
    transferMs: DEADLINES.apiLongMs,
    timeoutMs: DEADLINES.apiLongMs,
    signal,
  })
  await group.state.publish(blankRecord('finished', round))
  const { contributions } = result
  const peers = contributions.map(({ peer }) => peer)
  const minPeers = Math.min(input.minPeers, groupSize)
  if (peers.length < minPeers) throw tooFew({ ...input, minPeers }, peers.length, result.reasons)
  return { parameters: await meanOf(contributions, parameters.length, clock), peers }
}

/** Peer ids of the others that give to this round, once there are enough. */
async function membersOfRound(
  { state }: Group,
  { round, minPeers, waitMs, group }: AverageInput,
  self: string,
  clock: Clock,
  signal: AbortSignal,
): Promise<string[]> {
  const given = (): string[] =>
    othersOf(state, self)
      .filter(({ record }) => record.outerStep === round && record.status !== 'leaving')
      .map(({ peer }) => peer)
  await withDeadline(clock, waitMs, `round ${round} of group ${group}`, signal, async (limited) => {
    while (given().length + 1 < minPeers && !limited.aborted) {
      const changed = Promise.withResolvers<void>()
      const stopListening = state.onChange(() => changed.resolve())
      await raceSignal(changed.promise, limited).catch(() => {})
      stopListening()
    }
  })
  signal.throwIfAborted()
  const present = given().length + 1
  if (present < minPeers) throw tooFew({ round, minPeers, group }, present)
  await clock.sleep(Math.min(SETTLE_MS, waitMs), signal)
  return given()
}

/** `reasons`: why others that gave are not among the peers, as when their tensors are others. */
function tooFew(
  { round, minPeers, group }: Pick<AverageInput, 'round' | 'minPeers' | 'group'>,
  peers: number,
  reasons: readonly string[] = [],
): ShoalError {
  const why = reasons.length === 0 ? 'try again' : reasons.join('; ')
  return new ShoalError(
    'timeout',
    `${peers} of ${minPeers} peers gave to round ${round} of group ${group} in time: ${why}`,
    { details: { peers } },
  )
}

function otherTensors({ round, group }: Pick<AverageInput, 'round' | 'group'>): ShoalError {
  return new ShoalError(
    'schema_mismatch',
    `round ${round} of group ${group} was given tensors of other names or shapes: give to a later one`,
  )
}

async function meanOf(
  contributions: readonly Contribution[],
  elements: number,
  clock: Clock,
): Promise<Float32Array> {
  const mean = new Float32Array(elements)
  const weights = contributions.map(({ header }) => header.weight)
  for await (const [from, to] of slicesInTurns(elements, clock)) {
    const slices = contributions.map((given) => decodeSlice(given, 'parameters', from))
    weightedMean(slices, weights, mean.subarray(from, to))
  }
  return mean
}
