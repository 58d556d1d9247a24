/** The node's shared state: one `RunState` per open run, and the answers to peers for all of them. */
import type { Clock } from '../clock.ts'
import { asFault, ShoalError } from '../errors.ts'
import type { Logger } from '../log.ts'
import type { Metrics } from '../metrics.ts'
import type { Identity } from '../net/identity.ts'
import type { RpcContext } from '../net/network.ts'
import type { Random } from '../random.ts'
import type { RecordStore } from '../store/record-store.ts'
import type { StateNetwork } from './gossip.ts'
import {
  decodePush,
  decodeSyncRequest,
  encodeSyncReply,
  PUSH_METHOD,
  SYNC_METHOD,
} from './messages.ts'
import { createOffences } from './offences.ts'
import { RunState } from './run-state.ts'
import type { StateService } from './shared-state.ts'

export interface StateServiceOptions {
  network: StateNetwork
  records: RecordStore
  identity: Identity
  clock: Clock
  /** Of this node alone: with entropy in its seed, two lives of one identity never share an epoch. */
  random: Random
  logger: Logger
  metrics: Metrics
  /** Life of a record since it was made. */
  ttlMs?: number
  /** How often the own record is published again; well below `ttlMs`. */
  heartbeatMs?: number
  /** Mean time between two anti-entropy exchanges. */
  syncIntervalMs?: number
}

export function createStateService(options: StateServiceOptions): StateService {
  const { network, clock } = options
  const { ttlMs = 60_000, heartbeatMs = 15_000, syncIntervalMs = 5_000 } = options
  const offences = createOffences(clock)
  const runs = new Map<string, RunState>()
  const removeHandlers = [
    network.rpc.handle(PUSH_METHOD, async (bytes, context) => {
      const push = admitted(context, bytes, decodePush)
      await runOf(push.run).receivePush(context.peer, push)
      return new Uint8Array(0)
    }),
    network.rpc.handle(SYNC_METHOD, async (bytes, context) => {
      const request = admitted(context, bytes, decodeSyncRequest)
      return encodeSyncReply(runOf(request.run).receiveSync(context.peer, request))
    }),
  ]

  function admitted<T>({ peer }: RpcContext, bytes: Uint8Array, parse: (b: Uint8Array) => T): T {
    if (offences.ignored(peer)) {
      throw new ShoalError('refused', 'too many bad envelopes; ignored for a minute')
    }
    try {
      return parse(bytes)
    } catch (error) {
      const { code } = asFault(error)
      if (code === 'message_invalid') offences.add(peer, 1)
      options.metrics.add('envelopes_rejected_total', 1, code)
      throw error
    }
  }

  function runOf(run: string): RunState {
    const state = runs.get(run)
    if (state === undefined) {
      throw new ShoalError('run_unknown', 'this node does not take part in that run')
    }
    return state
  }

  return {
    async open(run, { admins }) {
      if (runs.has(run)) {
        throw new ShoalError('conflict', `the shared state of run ${run} is open already`)
      }
      const state = new RunState({
        ...options,
        run,
        admins,
        offences,
        ttlMs,
        heartbeatMs,
        syncIntervalMs,
        logger: options.logger.child({ run }),
        closed: () => runs.delete(run),
      })
      runs.set(run, state)
      try {
        await state.start()
      } catch (error) {
        await state.close()
        throw error
      }
      return state
    },
    async close() {
      for (const remove of removeHandlers) remove()
      await Promise.all([...runs.values()].map((state) => state.close()))
    },
  }
}
