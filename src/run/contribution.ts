/**
 * A contribution: one peer's encoded vectors for one round, cut into chunks, and the header that describes it.
 *
 * One chunk is one slice (`LIMITS.sliceElements` elements) of one part, encoded by the part's codec; the order is all
 * slices of the pseudo-gradient, then all slices of the parameters. The header carries the sha-256 of every chunk, so
 * a receiver verifies each one by itself. Lengths follow from manifest and schema: a header cannot ask for memory.
 */
import { sha256 } from 'multiformats/hashes/sha2'
import { z } from 'zod'
import type { Clock } from '../clock.ts'
import { codecs, type Codec } from '../codec/codec.ts'
import { ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import { encodeCbor } from '../store/content.ts'
import { encodeWithFeedback } from '../optim/error-feedback.ts'
import { norm, slicesOf, type SliceRange } from '../tensor/vector.ts'
import type { Averaging } from './manifest.ts'
import { sendsWeightsEarly } from './overlap.ts'

/**
 * `outer`: the round of an outer step. `weights`: the outer parameters at its start, where `outer` holds only the
 * pseudo-gradient (see `overlap.ts`). `rejoin`: parameters of peers that were apart, after the outer step that showed
 * it. `merge-N`: stage N of the final merge.
 */
export const PHASES = ['outer', 'weights', 'rejoin', 'merge-0', 'merge-1'] as const
export type Phase = (typeof PHASES)[number]

export interface RoundKey {
  outerStep: number
  phase: Phase
}

export type Part = 'pseudoGradient' | 'parameters'

export interface ChunkPlan {
  part: Part
  codec: Codec
  /** Slice of the flat vector. */
  from: number
  to: number
  bytes: number
}

export const CONTRIBUTION_VERSION = 1

export const contributionHeaderSchema = z.strictObject({
  version: z.literal(CONTRIBUTION_VERSION),
  run: z.string().max(128),
  outerStep: z.number().int().min(0),
  phase: z.enum(PHASES),
  schemaHash: z.string().length(64),
  /** Tokens behind the pseudo-gradient (`outer`), or replicas behind the parameters (`merge-N`). */
  weight: z.number().int().min(1).max(Number.MAX_SAFE_INTEGER),
  /** L2 norm of the pseudo-gradient, before error feedback and encoding; 0 in a merge. */
  norm: z.number().min(0).max(1e30),
  /** Hash of the outer parameters that the pseudo-gradient starts from, where all peers should hold equal ones. */
  base: z.string().max(64).nullable(),
  /** Whether these are of a time apart from the swarm, and are to be merged with the others' instead of given up. */
  rejoins: z.boolean(),
  digests: z.array(z.instanceof(Uint8Array).refine((digest) => digest.length === 32)).max(4096),
})
export type ContributionHeader = z.infer<typeof contributionHeaderSchema>

export interface Contribution {
  peer: string
  header: ContributionHeader
  plan: readonly ChunkPlan[]
  chunks: readonly Uint8Array[]
}

/** Which chunks a contribution of this phase has, for the elements of `range`. */
export function contributionPlan(
  averaging: Averaging,
  phase: Phase,
  [start, end]: SliceRange,
): ChunkPlan[] {
  const isOuter = phase === 'outer'
  const isDiloco = averaging.rule === 'diloco'
  const parts: [Part, Codec][] = []
  if (isOuter && averaging.rule !== 'adapt-then-combine')
    parts.push(['pseudoGradient', codecs[averaging.pseudoGradientCodec]])
  if (!isOuter || (!isDiloco && !sendsWeightsEarly(averaging)))
    parts.push(['parameters', codecs[averaging.parametersCodec]])
  return parts.flatMap(([part, codec]) =>
    [...slicesOf(end, LIMITS.sliceElements, start)].map(([from, to]) => {
      const bytes = codec.encodedBytes(to - from)
      return { part, codec, from, to, bytes }
    }),
  )
}

/** One contribution of the parts of two. */
export function joinContributions(first: Contribution, second: Contribution): Contribution {
  return {
    ...first,
    plan: [...first.plan, ...second.plan],
    chunks: [...first.chunks, ...second.chunks],
  }
}

/** The slices that contributions of this plan hold, with a turn of the event loop after each whole one. */
export async function* plannedSlices(
  plan: readonly ChunkPlan[],
  clock: Clock,
): AsyncGenerator<SliceRange> {
  const [first] = plan
  for (const { part, from, to } of plan) {
    if (part !== first?.part) continue
    yield [from, to]
    if (to - from === LIMITS.sliceElements) await clock.sleep(0)
  }
}

/** Encodes slice by slice, yielding between slices. Throws `engine_failed` when a vector is not finite. */
export async function encodeContribution(
  input: {
    peer: string
    run: string
    key: RoundKey
    schemaHash: string
    weight: number
    base?: string | null
    rejoins?: boolean
    plan: readonly ChunkPlan[]
    vectors: Partial<Record<Part, Float32Array>>
    /** Error feedback of the pseudo-gradient; the residual is changed in place. */
    feedback?: { residual: Float32Array; beta: number } | undefined
  },
  clock: Clock,
): Promise<Contribution> {
  const chunks: Uint8Array<ArrayBuffer>[] = []
  const digests: Uint8Array<ArrayBuffer>[] = []
  for (const { part, codec, from, to } of input.plan) {
    const vector = input.vectors[part]
    if (vector === undefined) throw new ShoalError('internal', `a contribution lacks its ${part}`)
    const feedback = part === 'pseudoGradient' ? input.feedback : undefined
    const slice = vector.subarray(from, to)
    const bytes =
      feedback === undefined
        ? codec.encode(slice)
        : encodeWithFeedback(codec, slice, feedback.residual.subarray(from, to), feedback.beta)
    chunks.push(bytes)
    digests.push(new Uint8Array((await sha256.digest(bytes)).digest))
    if (to - from === LIMITS.sliceElements) await clock.sleep(0)
  }
  const { pseudoGradient } = input.vectors
  return {
    peer: input.peer,
    plan: input.plan,
    chunks,
    header: {
      version: CONTRIBUTION_VERSION,
      run: input.run,
      outerStep: input.key.outerStep,
      phase: input.key.phase,
      schemaHash: input.schemaHash,
      weight: Math.max(1, Math.round(input.weight)),
      norm: pseudoGradient === undefined ? 0 : norm(pseudoGradient),
      base: input.base ?? null,
      rejoins: input.rejoins ?? false,
      digests,
    },
  }
}

export function encodeHeader(header: ContributionHeader): Uint8Array {
  return encodeCbor(header)
}

/** The encoded bytes of a contribution, header excluded. */
export function contributionBytes(plan: readonly ChunkPlan[]): number {
  return plan.reduce((sum, { bytes }) => sum + bytes, 0)
}

/** De-quantised elements [from, to) of `part`; `from` must be the start of a slice. */
export function decodeSlice(contribution: Contribution, part: Part, from: number): Float32Array {
  const index = contribution.plan.findIndex((chunk) => chunk.part === part && chunk.from === from)
  const chunk = contribution.plan[index]
  const bytes = contribution.chunks[index]
  if (chunk === undefined || bytes === undefined) {
    throw new ShoalError('internal', `a contribution has no ${part} slice at ${from}`)
  }
  return chunk.codec.decode(bytes, chunk.to - chunk.from)
}

/** De-quantises a whole part, yielding between slices. Throws `message_invalid` on codes that no encoder makes. */
export async function decodePart(
  contribution: Contribution,
  part: Part,
  clock: Clock,
): Promise<Float32Array> {
  const chunks = contribution.plan.filter((chunk) => chunk.part === part)
  const vector = new Float32Array(chunks.at(-1)?.to ?? 0)
  for (const { from, to } of chunks) {
    vector.set(decodeSlice(contribution, part, from), from)
    if (to - from === LIMITS.sliceElements) await clock.sleep(0)
  }
  return vector
}

export async function digestMatches(
  bytes: Uint8Array,
  digest: Uint8Array | undefined,
): Promise<boolean> {
  if (digest === undefined) return false
  const found = (await sha256.digest(bytes)).digest
  return found.length === digest.length && found.every((byte, index) => byte === digest[index])
}
