/**
 * The outer step of one peer: what its group's contributions do to its outer parameters and outer momentum.
 *
 * Every element moves by itself, so a caller may hand over whole vectors or slice after slice. What depends on the
 * whole vectors (the factors of clipping) is computed before. All members read the parameters as they were before the
 * step; sums run in float64 in the group's order (by peer id), then are rounded to float32, so that members who
 * combine the same contributions get the same bits.
 *
 *     G = sum of w_j * pg_j                     mean pseudo-gradient (pg = outer - local parameters)
 *     C = 1/n * sum of (phi_j - phi_i)          consensus displacement of this peer, i
 *
 * - `gossip-diloco`: b <- mu*b + G;  phi <- phi + C - eta*(G + mu*b). Consensus stays outside the momentum, which keeps
 *   random groups stable at mu = 0.8. With the whole swarm as group this is DiLoCo, alone it is SNOO.
 * - `diloco` (arXiv 2311.08105): the same without C, for parameters that are equal on all peers.
 * - `adapt-then-combine`: every peer steps alone before the exchange, y = phi - eta*(pg + mu*b) with b <- mu*b + pg
 *   (`nesterovStep`), and the results are averaged: phi <- y + C. One vector is sent instead of two.
 * - `noloco` (arXiv 2506.10911, with the sign of the authors' code):
 *   delta <- alpha*delta - beta*G + gamma*C;  phi <- phi + delta. Published with equal weights.
 */
import { ShoalError } from '../errors.ts'
import { addScaled, requireEqualLengths } from '../tensor/vector.ts'
import { normalizedWeights } from './combine.ts'

/** The fields of a manifest's `averaging` that the step needs. */
export interface OuterSettings {
  rule: 'gossip-diloco' | 'adapt-then-combine' | 'noloco' | 'diloco'
  /** eta; NoLoCo's beta. */
  learningRate: number
  /** mu; NoLoCo's alpha. */
  momentum: number
  /** NoLoCo's gamma. */
  consensus: number
}

/** Changed in place. Momentum (NoLoCo: delta) and residual start at zero. */
export interface OuterState {
  parameters: Float32Array
  momentum: Float32Array
  /** What error feedback has not sent yet (`error-feedback.ts`); absent without it. No outer step reads it. */
  residual?: Float32Array | undefined
}

/** What one member of the group brings: decoded, the own contribution too, so that all compute with the same numbers. */
export interface GroupMember {
  /** Not read by `adapt-then-combine`. */
  pseudoGradient?: Float32Array | undefined
  /** Outer parameters. Not read of the peer itself, which uses its exact ones, nor by `diloco`. */
  parameters?: Float32Array | undefined
  /** Tokens behind the pseudo-gradient, of any scale. */
  weight: number
  /** When given, pg_i + factor * (pg_j - pg_i) stands for pg_j: see `clipFactor`. */
  pseudoGradientFactor?: number | undefined
  /** Scales phi_j - phi_i (ClippedGossip). */
  parametersFactor?: number | undefined
}

/** One outer step of member `self` of the group, in place on `state` (`adapt-then-combine`: y). */
export function outerStep(
  settings: OuterSettings,
  state: OuterState,
  group: readonly GroupMember[],
  self: number,
): void {
  if (group[self] === undefined) {
    throw new ShoalError('internal', `there is no member ${self} in a group of ${group.length}`)
  }
  if (settings.rule === 'adapt-then-combine') {
    addScaled(state.parameters, consensusDisplacement(state.parameters, group, self), 1)
    return
  }
  const pseudoGradient = meanPseudoGradient(group, self)
  if (settings.rule === 'diloco') {
    nesterovStep(settings, state, pseudoGradient)
    return
  }
  const displacement = consensusDisplacement(state.parameters, group, self)
  if (settings.rule === 'noloco') nolocoStep(settings, state, pseudoGradient, displacement)
  else nesterovStep(settings, state, pseudoGradient, displacement)
}

/** G: the group's weighted mean pseudo-gradient as `self` sees it. */
export function meanPseudoGradient(group: readonly GroupMember[], self: number): Float32Array {
  const own = pseudoGradientOf(group, self)
  const shares = normalizedWeights(group.map(({ weight }) => weight))
  const sums = new Float64Array(own.length)
  for (const [j, { pseudoGradientFactor }] of group.entries()) {
    const pseudoGradient = pseudoGradientOf(group, j)
    requireEqualLengths(pseudoGradient, own)
    const share = shares[j]!
    if (pseudoGradientFactor === undefined) {
      for (let i = 0; i < sums.length; i++) sums[i] = sums[i]! + share * pseudoGradient[i]!
      continue
    }
    const factor = Math.fround(pseudoGradientFactor)
    for (let i = 0; i < sums.length; i++) {
      const difference = Math.fround(Math.fround(pseudoGradient[i]! - own[i]!) * factor)
      sums[i] = sums[i]! + share * Math.fround(own[i]! + difference)
    }
  }
  return new Float32Array(sums)
}

/** C: the mean of the members' differences to the own exact parameters, the own difference of 0 included. */
export function consensusDisplacement(
  own: Float32Array,
  group: readonly GroupMember[],
  self: number,
): Float32Array {
  const sums = new Float64Array(own.length)
  for (const [j, { parameters, parametersFactor = 1 }] of group.entries()) {
    if (j === self) continue
    if (parameters === undefined) {
      throw new ShoalError('internal', `member ${j} of the group brought no parameters`)
    }
    requireEqualLengths(parameters, own)
    const factor = Math.fround(parametersFactor)
    for (let i = 0; i < sums.length; i++) {
      sums[i] = sums[i]! + Math.fround(Math.fround(parameters[i]! - own[i]!) * factor)
    }
  }
  const mean = new Float32Array(sums.length)
  for (let i = 0; i < mean.length; i++) mean[i] = sums[i]! / group.length
  return mean
}

/** SGD with Nesterov momentum (PyTorch's form) and, beside it, the displacement. */
export function nesterovStep(
  settings: Pick<OuterSettings, 'learningRate' | 'momentum'>,
  { parameters, momentum }: OuterState,
  gradient: Float32Array,
  displacement?: Float32Array,
): void {
  requireEqualLengths(parameters, gradient)
  requireEqualLengths(momentum, gradient)
  const { fround } = Math
  const rate = fround(settings.learningRate)
  const mu = fround(settings.momentum)
  for (let i = 0; i < parameters.length; i++) {
    const g = gradient[i]!
    const b = fround(fround(mu * momentum[i]!) + g)
    momentum[i] = b
    const start = displacement === undefined ? 0 : displacement[i]!
    parameters[i] = fround(parameters[i]! + start) - fround(rate * fround(g + fround(mu * b)))
  }
}

function nolocoStep(
  settings: OuterSettings,
  { parameters, momentum }: OuterState,
  gradient: Float32Array,
  displacement: Float32Array,
): void {
  requireEqualLengths(parameters, gradient)
  requireEqualLengths(momentum, gradient)
  const { fround } = Math
  const alpha = fround(settings.momentum)
  const beta = fround(settings.learningRate)
  const gamma = fround(settings.consensus)
  for (let i = 0; i < parameters.length; i++) {
    const drift = fround(fround(alpha * momentum[i]!) - fround(beta * gradient[i]!))
    const delta = fround(drift + fround(gamma * displacement[i]!))
    momentum[i] = delta
    parameters[i] = parameters[i]! + delta
  }
}

function pseudoGradientOf(group: readonly GroupMember[], member: number): Float32Array {
  const pseudoGradient = group[member]?.pseudoGradient
  if (pseudoGradient === undefined) {
    throw new ShoalError('internal', `member ${member} of the group brought no pseudo-gradient`)
  }
  return pseudoGradient
}
