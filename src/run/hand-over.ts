/**
 * Leaving a run well: the step in hand ends with what is done, so that its partners do not wait in vain; then the others
 * are told; and what they are fetching from here stays until they have it.
 */
import { raceSignal } from '../clock.ts'
import { DEADLINES } from '../limits.ts'
import { sayGoodbye, type RunContext } from './run-context.ts'

/** Whoever fetches something asks for the next piece within this time, unless its line is very slow. */
const QUIET_MS = 3_000
const LOOK_AGAIN_MS = 100
/** A last word to the swarm must not hold up the end of the process. */
const FAREWELL_MS = 2_000

/** Resolves when nobody needs this peer any more, or at the deadline. `life`: what has been told to end. */
export async function handOver(run: RunContext, life: Promise<void>): Promise<void> {
  const { clock } = run
  const deadline = clock.deadline(DEADLINES.leaveMs, 'leaving the run')
  // An outside process ends its step when it likes, and may have ended itself.
  const endsSoon = run.progress.status === 'training' && run.outside === undefined
  if (endsSoon) await unlessLate(life, deadline)
  await unlessLate(sayGoodbye(run), clock.deadline(FAREWELL_MS, 'saying goodbye'))
  if (run.membership.others().length > 0) await unlessLate(untilQuiet(run, deadline), deadline)
}

async function untilQuiet(run: RunContext, signal: AbortSignal): Promise<void> {
  const { clock } = run
  while (clock.now() - lastNeededMs(run) < QUIET_MS) await clock.sleep(LOOK_AGAIN_MS, signal)
}

/** What fails or comes too late is not worth staying for. */
async function unlessLate(work: Promise<void>, deadline: AbortSignal): Promise<void> {
  await raceSignal(work, deadline).catch(() => {})
}

/** When somebody has fetched something of the run here, or announced that it would. */
function lastNeededMs({ exchange, blobExchange, snapshots, store }: RunContext): number {
  const blobsMs = blobExchange.lastServedMs((cid) => store.holds(cid))
  return Math.max(exchange.lastServedMs(), blobsMs, snapshots.lastAskedMs())
}
