/**
 * All-reduce runs: a peer that finds nobody to average with waits for the others before it goes on alone.
 *
 * What it trains by itself the others do not share, and alone nothing holds it up: left out for a moment, it would be
 * dozens of outer steps ahead before they have ended the round that they are in, and theirs would be the work that is
 * given up. So it waits, a round's length in all, which it is given anew whenever another moves on. When it hears of
 * nobody it goes on: they are gone, or train apart, and all will be merged.
 */
import type { Clock } from '../clock.ts'
import { LIMITS } from '../limits.ts'
import type { Member, SharedState } from '../state/shared-state.ts'
import { forgetFirst, progressMark } from './membership.ts'
import type { Partners } from './partners.ts'
import { nextChange } from './run-context.ts'

export interface Company {
  /**
   * What `choose` finds: it is asked again with every change of the shared state while that is nobody, for `patienceMs`
   * at most. Rejects only when the signal fires.
   */
  find(choose: () => Partners, patienceMs: number, signal: AbortSignal): Promise<Partners>
}

export interface CompanyOptions {
  self: string
  state: Pick<SharedState, 'members' | 'onChange'>
  clock: Clock
  roundTimeoutMs: number
}

/** Somebody is there; so much later news of those who came along is here too. */
const SETTLE_MS = 100

export function createCompany({ self, state, clock, roundTimeoutMs }: CompanyOptions): Company {
  const marks = new Map<string, string>()
  let leftMs = roundTimeoutMs
  const others = (): Member[] =>
    state
      .members()
      .filter(
        ({ peer, record }) => peer !== self && !['leaving', 'finished'].includes(record.status),
      )

  /** Whether one of the others has moved since this was asked last. */
  function haveMoved(): boolean {
    const moved = others().filter((member) => marks.get(member.peer) !== progressMark(member))
    for (const member of moved) {
      marks.delete(member.peer)
      marks.set(member.peer, progressMark(member))
    }
    forgetFirst(marks, LIMITS.runPeers)
    return moved.length > 0
  }

  return {
    async find(choose, patienceMs, signal) {
      if (haveMoved()) leftMs = roundTimeoutMs
      const startedMs = clock.now()
      const endsMs = startedMs + Math.min(patienceMs, leftMs)
      for (let waited = false; ; waited = true) {
        const partners = choose()
        if (partners.group.length > 0) {
          if (!waited) return partners
          await clock.sleep(SETTLE_MS, signal)
          return choose()
        }
        const nowMs = clock.now()
        if (others().length === 0 || nowMs >= endsMs) {
          leftMs -= Math.min(leftMs, nowMs - startedMs)
          return partners
        }
        await nextChange({ state, clock }, signal, endsMs - nowMs)
      }
    },
  }
}
