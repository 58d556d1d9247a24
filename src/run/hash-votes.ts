/** What the members of an all-reduce run say their outer parameters' hash is after each outer step. */
import type { SharedState } from '../state/shared-state.ts'

/** Outer steps remembered: more than a peer that comes back replays. */
const STEPS = 64

export interface HashVotes {
  /** The hash that a strict majority of those who told of this outer step have, this peer not counted. */
  majority(outerStep: number): string | undefined
  close(): void
}

export function createHashVotes(
  self: string,
  state: Pick<SharedState, 'members' | 'onChange'>,
): HashVotes {
  const steps = new Map<number, Map<string, string>>()
  const close = state.onChange(() => {
    for (const { peer, record } of state.members()) {
      const { outerStep, parametersHash } = record
      if (peer === self || parametersHash === null) continue
      // It has gone back, and its steps since then are not the swarm's.
      for (const [step, votes] of steps) if (step > outerStep) votes.delete(peer)
      const votes = steps.get(outerStep) ?? new Map<string, string>()
      steps.set(outerStep, votes.set(peer, parametersHash))
    }
    for (const [step, votes] of steps) if (votes.size === 0) steps.delete(step)
    while (steps.size > STEPS) steps.delete(Math.min(...steps.keys()))
  })
  return {
    majority(outerStep) {
      const votes = [...(steps.get(outerStep)?.values() ?? [])]
      return votes.find((hash) => 2 * votes.filter((vote) => vote === hash).length > votes.length)
    },
    close,
  }
}
