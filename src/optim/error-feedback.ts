/**
 * Error feedback: what a codec loses of a pseudo-gradient is kept and joins the next one.
 *
 *     a = beta * e + pg;  sent = decode(encode(a));  e <- a - sent
 *
 * beta = 1 is classical (Seide et al. 2014; Karimireddy et al. 2019, arXiv 1901.09847): all that is not sent now is
 * sent later. Below 1 old error fades, as SparseLoCo's 0.95 (arXiv 2508.15706), where e stands in for the outer
 * momentum. Every element moves by itself (where the codec lets it), so slices may come one after the other.
 */
import type { Codec } from '../codec/codec.ts'
import { addScaled, requireEqualLengths } from '../tensor/vector.ts'

/** Encodes a, and leaves the new error in `residual` (e), in place. Same faults as the codec's `encode`. */
export function encodeWithFeedback(
  codec: Codec,
  pseudoGradient: Float32Array,
  residual: Float32Array,
  beta: number,
): Uint8Array<ArrayBuffer> {
  requireEqualLengths(pseudoGradient, residual)
  const { fround } = Math
  const decay = fround(beta)
  for (let i = 0; i < residual.length; i++) {
    residual[i] = fround(decay * residual[i]!) + pseudoGradient[i]!
  }
  const bytes = codec.encode(residual)
  addScaled(residual, codec.decode(bytes, residual.length), -1)
  return bytes
}

/** What EControl keeps: the error e and the control variate h, both zero at first. Changed in place. */
export interface ErrorControl {
  residual: Float32Array
  variate: Float32Array
}

/**
 * EControl (Gao, Islamov, Stich 2023, arXiv 2311.05645): `D = C(eta * e + g - h);  e <- e + g - h - D;  h <- h + D`.
 * Step with h, which follows g. Receivers keep the sender's h too, adding each D they get.
 */
export function encodeWithControl(
  codec: Codec,
  gradient: Float32Array,
  { residual, variate }: ErrorControl,
  eta: number,
): Uint8Array<ArrayBuffer> {
  requireEqualLengths(gradient, residual)
  requireEqualLengths(gradient, variate)
  const { fround } = Math
  const share = fround(eta)
  const corrected = gradient.map((g, i) => fround(fround(share * residual[i]!) + g) - variate[i]!)
  const bytes = codec.encode(corrected)
  const sent = codec.decode(bytes, gradient.length)
  for (let i = 0; i < gradient.length; i++) {
    residual[i] = fround(fround(residual[i]! + gradient[i]!) - variate[i]!) - sent[i]!
    variate[i] = variate[i]! + sent[i]!
  }
  return bytes
}
