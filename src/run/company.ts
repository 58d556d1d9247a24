/**
 * All-reduce runs: a peer that finds nobody to average with waits for the others before it goes on alone.
 *
 * What it trains by itself the others do not share, and alone nothing holds it up: left out for a moment, it would be
 * dozens of outer steps ahead before they have ended the round that they are in, and theirs would be the work that is
 * given up. So it waits, a round's length in all, which it is given anew whenever another moves on. When it hears of
 * nobody it goes on: they are gone, or train apart, and all will be merged.
 */
import type { Clock } from '../clock.ts'
import type { PeerRecord } from '../state/record.ts'
import type { Member, SharedState } from '../state/shared-state.ts'
import { progressMark, setLast } from './membership.ts'
import type { Partners } from './partners.ts'
import { nextChange } from './run-context.ts'

export interface Company {
  /**
   * What `choose` finds: it is asked again with every change of the shared state while that is nobody, for `patienceMs`
   * at most, and not when the others are `elsewhere`. Rejects only when the signal fires.
   */
  find(search: Search, signal: AbortSignal): Promise<Partners>
}

interface Search {
  choose: () => Partners
  /** Whether the others are so far away that they will not come to the outer step of this peer. */
  elsewhere: () => boolean
  patienceMs: number
}

export interface CompanyOptions {
  self: string
  state: Pick<SharedState, 'members' | 'onChange'>
  clock: Clock
  roundTimeoutMs: number
  /** Looks for the others while this peer waits for them; ends with the signal and never rejects. */
  seek: (others: () => string[], signal: AbortSignal) => Promise<void>
}

/** Somebody is there; so much later news of those who came along is here too. */
const SETTLE_MS = 100
const GONE: ReadonlySet<PeerRecord['status']> = new Set(['leaving', 'finished'])

export function createCompany(options: CompanyOptions): Company {
  const { self, state, clock, roundTimeoutMs, seek } = options
  const marks = new Map<string, string>()
  let leftMs = roundTimeoutMs
  const others = (): Member[] =>
    state.members().filter(({ peer, record }) => peer !== self && !GONE.has(record.status))

  /** Whether one of the others has moved since this was asked last. */
  function haveMoved(): boolean {
    const moved = others().filter((member) => marks.get(member.peer) !== progressMark(member))
    for (const member of moved) setLast(marks, member.peer, progressMark(member))
    return moved.length > 0
  }

  /** Until `choose` finds somebody, nobody is left to be waited for, or the time is over. */
  async function wait(
    { choose, elsewhere }: Search,
    endsMs: number,
    signal: AbortSignal,
  ): Promise<void> {
    const isHopeless = (): boolean => others().length === 0 || elsewhere()
    while (choose().group.length === 0 && !isHopeless() && clock.now() < endsMs)
      await nextChange({ state, clock }, signal, endsMs - clock.now())
    if (choose().group.length > 0) await clock.sleep(SETTLE_MS, signal)
  }

  return {
    async find(search, signal) {
      const { choose, patienceMs } = search
      if (haveMoved()) leftMs = roundTimeoutMs
      const startedMs = clock.now()
      const waitMs = Math.min(patienceMs, leftMs)
      if (choose().group.length > 0 || others().length === 0 || waitMs === 0) return choose()
      const done = new AbortController()
      const peers = (): string[] => others().map(({ peer }) => peer)
      const seeking = seek(peers, AbortSignal.any([signal, done.signal]))
      try {
        await wait(search, startedMs + waitMs, signal)
      } finally {
        done.abort()
        await seeking
        leftMs = Math.max(0, leftMs - (clock.now() - startedMs))
      }
      return choose()
    },
  }
}
