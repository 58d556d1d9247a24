/**
 * The trainer that is an outside process: the meeting place of a run and a script.
 *
 * Contract. The run asks for an outer step and waits. The script takes the outer parameters, does its inner steps for
 * as long as they take, hands local parameters in, and gets the next outer parameters after the round. Guarantees: a
 * step counts once, and whoever repeats it gets its result again, also after a restart of the node; a step that the run
 * is not at is refused with the step it is at; a script that was not heard for a while is told of as silent, and counts
 * again when it is back.
 */
import { raceSignal, withDeadline, type Clock } from '../clock.ts'
import { ShoalError } from '../errors.ts'
import { DEADLINES } from '../limits.ts'
import type { Schema } from '../tensor/schema.ts'
import { slicesInTurns } from './slices.ts'
import type { InnerStepsOptions, InnerStepsResult, RunTrainer, Trainer } from './trainer.ts'
import type { RoundView } from './view.ts'

/** What the script says of the inner steps behind the local parameters it hands in. */
export interface LocalStep {
  outerStep: number
  /** Tokens, or whatever its contribution is to be weighed by. */
  tokens: number
  /** Mean training loss over the inner steps. */
  loss: number
  innerSteps: number
}

/** What a script has done of its outer step so far. */
export interface LocalProgress {
  innerStep?: number | undefined
  loss?: number | undefined
  tokens?: number | undefined
}

/** Outer parameters, and the outer step that starts from them. */
export interface OuterParameters {
  /** The outer step that starts from them; the run's last plus 1 when there is none. */
  outerStep: number
  /** Never changed, and not to be changed. */
  parameters: Float32Array
}

export interface CommittedRound {
  outerStep: number
  outcome: RoundView['outcome']
  partners: readonly string[]
  consensusDistance: number | null
}

/** What a committed outer step came to. */
export interface OuterStepResult extends CommittedRound {
  /** Where the run goes on: further ahead than the next when this peer had fallen behind, or back where the others are. */
  nextOuterStep: number
  /** Those the next outer step starts from. Not to be changed. */
  parameters: Float32Array
}

/** The script's side. */
export interface TrainingScript {
  readonly schema: Schema
  /** Waits while a round, or the preparation of the run, is under way. Throws `conflict` when the run has ended. */
  parameters(signal: AbortSignal): Promise<OuterParameters>
  /**
   * Hands in local parameters, which `read` writes into the vector it is given, and waits for the end of the round.
   * A step that is committed already is not read again. Throws `conflict` for a step that the run is not at, or whose
   * round was lost, and what `read` throws; then the step may be handed in again.
   */
  outerStep(
    step: LocalStep,
    read: (target: Float32Array) => Promise<unknown>,
    signal: AbortSignal,
  ): Promise<OuterStepResult>
  /** A sign of life. Returns whether the rest of the swarm is done with this outer step: time to hand in. */
  progress(progress: LocalProgress): { enough: boolean }
}

/** The run's side, and the script's. */
export interface OutsideTrainer extends RunTrainer {
  readonly script: TrainingScript
  /**
   * The run is ready, or again after a fault: then what was handed in since the last commit is lost. `evaluate`: for
   * models that the embedded engine knows too.
   */
  begin(
    start: OuterParameters,
    options: { evaluate: Trainer['evaluate'] | undefined; round: CommittedRound | null },
  ): Promise<void>
  /** The round is over and committed; the run goes on with `outerStep`. */
  settle(outerStep: number, round: CommittedRound): void
  /** The run is over (finished, without a fault) or ended otherwise. */
  end(fault?: ShoalError): void
}

export interface OutsideTrainerOptions {
  schema: Schema
  clock: Clock
  /** After so long without a word the script is silent. */
  silentMs?: number | undefined
}

/** An outer step that the run has asked for. */
interface Turn {
  outerStep: number
  options: InnerStepsOptions
  state: 'open' | 'reading' | 'taken' | 'lost'
  result: InnerStepsResult | undefined
}

interface Meeting {
  readonly clock: Clock
  readonly schema: Schema
  /** Rung at every change. */
  readonly bell: Bell
  heardMs: number
  turn: Turn | undefined
  /** The step that starts from `outer`; undefined while that is not known. */
  outerStep: number | undefined
  /** Copied for every step, so that one that is being sent stays whole. */
  outer: Float32Array
  /** The newest local parameters; the run may change them until it asks for the next step. */
  local: Float32Array | undefined
  committed: CommittedRound | null
  ended: 'finished' | ShoalError | undefined
}

export function createOutsideTrainer(options: OutsideTrainerOptions): OutsideTrainer {
  const { schema, clock, silentMs = DEADLINES.trainerSilentMs } = options
  const meeting: Meeting = {
    clock,
    schema,
    bell: createBell(),
    heardMs: Number.NEGATIVE_INFINITY,
    turn: undefined,
    outerStep: undefined,
    outer: new Float32Array(0),
    local: undefined,
    committed: null,
    ended: undefined,
  }
  let evaluate: Trainer['evaluate'] | undefined
  const end = (fault?: ShoalError): void => {
    meeting.ended ??= fault ?? 'finished'
    meeting.bell.ring()
  }
  return {
    schema,
    script: createScript(meeting),
    get evaluate() {
      return evaluate
    },
    async begin(start, beginning) {
      evaluate = beginning.evaluate
      meeting.committed = beginning.round
      if (meeting.turn !== undefined) meeting.turn.state = 'lost'
      meeting.turn = undefined
      meeting.outer = await copyOf(start.parameters, clock)
      meeting.outerStep = start.outerStep
      meeting.bell.ring()
    },
    readParameters: async () => meeting.local ?? copyOf(meeting.outer, clock),
    async writeParameters(parameters) {
      meeting.outer = await copyOf(parameters, clock)
    },
    innerSteps: (outerStep, stepOptions = {}) =>
      awaitLocalStep(meeting, outerStep, stepOptions, silentMs),
    settle(outerStep, round) {
      meeting.committed = round
      meeting.outerStep = outerStep
      // The run may go back to the same outer step: what was handed in for it is done with.
      meeting.turn = undefined
      meeting.bell.ring()
    },
    end,
    // The script keeps the state of its inner optimizer itself.
    exportOptimizer: async () => new Uint8Array(),
    importOptimizer: async () => {},
    async close() {
      end(new ShoalError('aborted', 'the run was stopped on this node'))
    },
  }
}

/** Waits until the script hands the step in, and tells when it falls silent and when it is back. */
async function awaitLocalStep(
  meeting: Meeting,
  outerStep: number,
  options: InnerStepsOptions,
  silentMs: number,
): Promise<InnerStepsResult> {
  const { clock, bell } = meeting
  const { signal = new AbortController().signal, onSilence } = options
  // It was asked for in parts; the script has handed it in as a whole.
  if (meeting.turn?.outerStep === outerStep && meeting.turn.result !== undefined) {
    return { ...meeting.turn.result, steps: 0, tokens: 0 }
  }
  const turn: Turn = { outerStep, options, state: 'open', result: undefined }
  meeting.turn = turn
  meeting.outerStep = outerStep
  bell.ring()
  let silent = false
  try {
    for (;;) {
      signal.throwIfAborted()
      const leftMs = meeting.heardMs + silentMs - clock.now()
      const isOpen = turn.state === 'open'
      if (silent !== (isOpen && leftMs <= 0)) {
        silent = !silent
        await onSilence?.(silent)
        continue
      }
      if (turn.result !== undefined) return turn.result
      await nextRing(meeting, isOpen && !silent ? leftMs : undefined, signal)
    }
  } finally {
    if (turn.result === undefined) meeting.turn = undefined
  }
}

/** Resolves at the next ring, or after `ms`. Rejects when aborted. */
async function nextRing(
  { clock, bell }: Meeting,
  ms: number | undefined,
  signal: AbortSignal,
): Promise<void> {
  if (ms === undefined) return bell.next(signal)
  await withDeadline(clock, ms, 'a word of the trainer', signal, (limited) =>
    bell.next(limited),
  ).catch((thrown: unknown) => {
    if (signal.aborted) throw thrown
  })
}

function createScript(meeting: Meeting): TrainingScript {
  const { bell, clock, schema } = meeting
  const hear = (): void => {
    meeting.heardMs = clock.now()
    bell.ring()
  }
  return {
    schema,
    async parameters(signal) {
      hear()
      return until(bell, signal, () => {
        const { outerStep, outer, ended } = meeting
        if (ended !== undefined && ended !== 'finished') throw endedFault(ended)
        return outerStep === undefined ? undefined : { outerStep, parameters: outer }
      })
    },
    async outerStep(step, read, signal) {
      hear()
      const turn = await until(bell, signal, () => findTurn(meeting, step.outerStep))
      if (turn !== 'committed') await takeStep(meeting, turn, step, read)
      hear()
      return until(bell, signal, () => resultOf(meeting, turn, step.outerStep))
    },
    progress({ innerStep, loss, tokens }) {
      hear()
      const options = meeting.turn?.state === 'open' ? meeting.turn.options : undefined
      if (innerStep !== undefined && loss !== undefined) {
        options?.onProgress?.({ step: innerStep, loss, tokens: tokens ?? 0 })
      }
      return { enough: options?.enough?.aborted === true }
    },
  }
}

/** The turn to hand the step in to, or that it is done, or undefined while neither can be told. */
function findTurn(meeting: Meeting, outerStep: number): Turn | 'committed' | undefined {
  const { turn, committed, ended } = meeting
  // A run that went back to this step has it done anew.
  if (committed?.outerStep === outerStep && meeting.outerStep !== outerStep) return 'committed'
  if (ended !== undefined) throw endedFault(ended)
  checkStep(meeting, outerStep)
  return turn?.state === 'open' ? turn : undefined
}

/** Throws unless the run is at this outer step, or its round is under way, or neither can be told yet. */
function checkStep(meeting: Meeting, outerStep: number): void {
  const { turn } = meeting
  const current = meeting.outerStep ?? (turn?.state === 'taken' ? turn.outerStep : undefined)
  if (current === undefined || current === outerStep) return
  throw new ShoalError(
    'conflict',
    `the run is at outer step ${current}, not ${outerStep}: get its parameters and go on from there`,
    { details: { outerStep: current } },
  )
}

async function takeStep(
  meeting: Meeting,
  turn: Turn,
  step: LocalStep,
  read: (target: Float32Array) => Promise<unknown>,
): Promise<void> {
  turn.state = 'reading'
  const target = meeting.local ?? new Float32Array(meeting.schema.size)
  meeting.local = target
  try {
    await read(target)
  } catch (thrown) {
    if (turn.state === 'reading') turn.state = 'open'
    meeting.bell.ring()
    throw thrown
  }
  if (turn.state !== 'reading') throw lostFault(step.outerStep)
  turn.state = 'taken'
  turn.result = { steps: step.innerSteps, tokens: step.tokens, loss: step.loss }
  meeting.outerStep = undefined
  meeting.bell.ring()
}

/** Undefined while its round is under way, or the next one: then the parameters are about to change. */
function resultOf(
  meeting: Meeting,
  turn: Turn | 'committed',
  outerStep: number,
): OuterStepResult | undefined {
  const { committed, outer: parameters, outerStep: nextOuterStep, ended } = meeting
  if (committed?.outerStep === outerStep && nextOuterStep !== undefined) {
    return { ...committed, nextOuterStep, parameters }
  }
  if (ended !== undefined) throw endedFault(ended)
  if (committed?.outerStep !== outerStep) {
    if (turn !== 'committed' && turn.state === 'lost') throw lostFault(outerStep)
    checkStep(meeting, outerStep)
  }
  return undefined
}

function lostFault(outerStep: number): ShoalError {
  return new ShoalError(
    'conflict',
    `the round of outer step ${outerStep} was lost by a fault of this node: hand the step in again`,
    { details: { outerStep } },
  )
}

function endedFault(ended: 'finished' | ShoalError): ShoalError {
  if (ended === 'finished') {
    return new ShoalError('conflict', 'the run is finished: get its parameters')
  }
  // A node that stops goes on where it was: the script may wait for it.
  if (ended.code === 'aborted') return ended
  const { message } = ended
  return new ShoalError('conflict', `the run has ended on this node: ${message}`, { cause: ended })
}

async function copyOf(vector: Float32Array, clock: Clock): Promise<Float32Array> {
  const copy = new Float32Array(vector.length)
  for await (const [from, to] of slicesInTurns(vector.length, clock)) {
    copy.set(vector.subarray(from, to), from)
  }
  return copy
}

interface Bell {
  ring(): void
  /** Resolves at the next ring; rejects with the signal's reason. */
  next(signal: AbortSignal): Promise<void>
}

function createBell(): Bell {
  let coming = Promise.withResolvers<void>()
  return {
    ring() {
      coming.resolve()
      coming = Promise.withResolvers<void>()
    },
    next: (signal) => raceSignal(coming.promise, signal),
  }
}

/** Looks at every ring until there is something, or `look` throws. */
async function until<T>(bell: Bell, signal: AbortSignal, look: () => T | undefined): Promise<T> {
  for (;;) {
    const found = look()
    if (found !== undefined) return found
    await bell.next(signal)
  }
}
