import { describe, expect, test } from 'vitest'
import { codecs } from '../../../src/codec/codec.ts'
import { clipFactor, weightedMean } from '../../../src/optim/combine.ts'
import {
  meanPseudoGradient,
  nesterovStep,
  outerStep,
  type GroupMember,
  type OuterSettings,
  type OuterState,
} from '../../../src/optim/outer.ts'
import { seededRandom } from '../../../src/random.ts'
import { distance, subtract } from '../../../src/tensor/vector.ts'
import dilocoOuter from '../../vectors/diloco_outer.json' with { type: 'json' }
import gossipDiloco from '../../vectors/gossip_diloco.json' with { type: 'json' }
import wire from '../../vectors/gossip_diloco_wire.json' with { type: 'json' }
import noloco from '../../vectors/noloco.json' with { type: 'json' }
import { expectClose, floats } from '../oracle.ts'

const GOSSIP: OuterSettings = {
  rule: 'gossip-diloco',
  learningRate: 0.7,
  momentum: 0.8,
  consensus: 0.7,
}

interface Radii {
  parameters?: number | null
  pseudoGradient?: number | null
}

/** The group as member `self` sees it, with the factors that its clipping radii give. */
function groupOf(
  self: number,
  pseudoGradients: readonly Float32Array[],
  parameters: readonly Float32Array[],
  weights: readonly number[] = pseudoGradients.map(() => 1),
  radii: Radii = {},
): GroupMember[] {
  const factor = (vectors: readonly Float32Array[], j: number, radius?: number | null) =>
    typeof radius === 'number'
      ? clipFactor(distance(vectors[j]!, vectors[self]!), radius)
      : undefined
  return pseudoGradients.map((pseudoGradient, j) => ({
    pseudoGradient,
    parameters: parameters[j],
    weight: weights[j]!,
    pseudoGradientFactor: factor(pseudoGradients, j, radii.pseudoGradient),
    parametersFactor: factor(parameters, j, radii.parameters),
  }))
}

/** One exchange of a whole group, all members at once. */
function exchange(
  settings: OuterSettings,
  states: OuterState[],
  locals: readonly Float32Array[],
  weights?: readonly number[],
  radii?: Radii,
): void {
  const parameters = states.map((state) => state.parameters.slice())
  const pseudoGradients = parameters.map((vector, j) => subtract(vector, locals[j]!))
  for (const [self, state] of states.entries()) {
    outerStep(settings, state, groupOf(self, pseudoGradients, parameters, weights, radii), self)
  }
}

function statesOf(parameters: number[][], momenta: number[][]): OuterState[] {
  return parameters.map((row, i) => ({ parameters: floats(row), momentum: floats(momenta[i]!) }))
}

function expectStates(
  states: readonly OuterState[],
  parameters: number[][],
  momenta: number[][],
  tolerance: { rtol: number; atol: number },
): void {
  expect(states.length).toBe(parameters.length)
  for (const [i, state] of states.entries()) {
    expectClose(state.parameters, parameters[i]!, tolerance)
    expectClose(state.momentum, momenta[i]!, tolerance)
  }
}

function gaussian(count: number, ...seed: string[]): Float32Array {
  const random = seededRandom(...seed)
  return Float32Array.from({ length: count }, () => random.normal())
}

describe('DiLoCo', () => {
  const settings: OuterSettings = {
    ...GOSSIP,
    rule: 'diloco',
    learningRate: dilocoOuter.lr,
    momentum: dilocoOuter.momentum,
  }

  test('hits the vectors, on every peer with the same bits', () => {
    const workers = dilocoOuter.rounds[0]!.thetas.length
    const size = dilocoOuter.phi0.length
    const states = Array.from({ length: workers }, () => ({
      parameters: floats(dilocoOuter.phi0),
      momentum: new Float32Array(size),
    }))
    for (const { thetas, pseudo_gradient, phi, buf } of dilocoOuter.rounds) {
      const pseudoGradients = thetas.map((theta) => subtract(states[0]!.parameters, floats(theta)))
      const group = pseudoGradients.map((pseudoGradient) => ({ pseudoGradient, weight: 1 }))
      const mean = meanPseudoGradient(group, 0)
      expectClose(mean, pseudo_gradient, dilocoOuter.tolerance)
      for (const [self, state] of states.entries()) outerStep(settings, state, group, self)
      for (const state of states) {
        expectClose(state.parameters, phi, dilocoOuter.tolerance)
        expectClose(state.momentum, buf, dilocoOuter.tolerance)
        expect(state).toEqual(states[0])
      }
    }
  })

  test('weighs pseudo-gradients by tokens', () => {
    const { phi, thetas, weights, pseudo_gradient } = dilocoOuter.weighted
    const group = thetas.map((theta, j) => ({
      pseudoGradient: subtract(floats(phi), floats(theta)),
      weight: weights[j]!,
    }))
    expectClose(meanPseudoGradient(group, 2), pseudo_gradient, dilocoOuter.tolerance)
  })
})

describe('adapt, then combine', () => {
  const settings: OuterSettings = { ...GOSSIP, rule: 'adapt-then-combine' }

  test('with the whole swarm as group is DiLoCo: the mean is linear', () => {
    const { lr, momentum, phi0, rounds, tolerance } = dilocoOuter
    const adaptive = { ...settings, learningRate: lr, momentum }
    const states = rounds[0]!.thetas.map(() => ({
      parameters: floats(phi0),
      momentum: new Float32Array(phi0.length),
    }))
    for (const { thetas, phi, buf } of rounds) {
      for (const [i, state] of states.entries()) {
        nesterovStep(adaptive, state, subtract(state.parameters, floats(thetas[i]!)))
      }
      const sent = states.map(({ parameters }) => ({ parameters: parameters.slice(), weight: 1 }))
      for (const [self, state] of states.entries()) outerStep(adaptive, state, sent, self)
      for (const { parameters } of states) {
        expectClose(parameters, phi, { rtol: 1e-5, atol: tolerance.atol + 1e-6 })
      }
      const meanMomentum = weightedMean(states.map((state) => state.momentum))
      expectClose(meanMomentum, buf, { rtol: 1e-5, atol: tolerance.atol + 1e-6 })
    }
  })

  test('alone has nothing to combine', () => {
    const state = { parameters: gaussian(50, 'phi'), momentum: gaussian(50, 'b') }
    const before = structuredClone(state)
    outerStep(settings, state, [{ parameters: before.parameters, weight: 1 }], 0)
    expect(state).toEqual(before)
  })

  test('keeps the mean of the swarm, whatever tokens are claimed', () => {
    const vectors = [1, 2, 3].map((i) => gaussian(50, `phi ${i}`))
    const mean = weightedMean(vectors)
    const sent = vectors.map((parameters, i) => ({ parameters, weight: 10 ** i }))
    for (const self of [0, 1, 2]) {
      const state = { parameters: vectors[self]!.slice(), momentum: new Float32Array(50) }
      outerStep(settings, state, sent, self)
      expectClose(state.parameters, mean, { rtol: 1e-5, atol: 1e-6 })
    }
  })
})

describe('NoLoCo', () => {
  test('hits the vectors', () => {
    const { alpha, beta, gamma } = noloco.hyper
    const settings: OuterSettings = {
      rule: 'noloco',
      learningRate: beta,
      momentum: alpha,
      consensus: gamma,
    }
    const states = statesOf(noloco.phi0, noloco.state0)
    for (const { groups, thetas, phi, state } of noloco.rounds) {
      for (const group of groups) {
        exchange(
          settings,
          group.map((i) => states[i]!),
          group.map((i) => floats(thetas[i]!)),
        )
      }
      expectStates(states, phi, state, noloco.tolerance)
    }
  })
})

describe('Gossip-DiLoCo', () => {
  const { tolerance } = gossipDiloco

  test('hits the vectors', () => {
    const states = statesOf(gossipDiloco.phi0, gossipDiloco.state0)
    for (const { groups, thetas, phi, state } of gossipDiloco.rounds) {
      for (const group of groups) {
        exchange(
          GOSSIP,
          group.map((i) => states[i]!),
          group.map((i) => floats(thetas[i]!)),
        )
      }
      expectStates(states, phi, state, tolerance)
    }
  })

  test('hits the vectors with clipping and token weights', () => {
    const { phi, theta, buf, tokens, clip_radius, pg_clip_radius, out_phi, out_buf } =
      gossipDiloco.clip_case
    const states = statesOf(phi, buf)
    const radii = { parameters: clip_radius, pseudoGradient: pg_clip_radius }
    exchange(GOSSIP, states, theta.map(floats), tokens, radii)
    expectStates(states, out_phi, out_buf, tolerance)
  })

  test('hits the vectors with averaged momenta', () => {
    const { phi, theta, buf, out_phi, out_buf } = gossipDiloco.avg_buf_case
    const mean = [...weightedMean(buf.map(floats))]
    const states = statesOf(
      phi,
      buf.map(() => mean),
    )
    exchange(GOSSIP, states, theta.map(floats))
    expectStates(states, out_phi, out_buf, tolerance)
  })

  test('with all peers in the group hits the vectors of DiLoCo', () => {
    const { phi, theta, buf, out_phi, out_buf, diloco_phi, diloco_buf } =
      gossipDiloco.reduces_to_diloco
    const states = statesOf(phi, buf)
    exchange(GOSSIP, states, theta.map(floats))
    expectStates(states, out_phi, out_buf, tolerance)
    expectStates(
      states,
      phi.map(() => diloco_phi),
      phi.map(() => diloco_buf),
      tolerance,
    )
  })

  test('with all peers in the group is DiLoCo bit by bit over 5 rounds', () => {
    const start = gaussian(300, 'start')
    const make = (): OuterState[] =>
      Array.from({ length: 4 }, () => ({
        parameters: start.slice(),
        momentum: new Float32Array(start.length),
      }))
    const [gossip, diloco] = [make(), make()]
    for (let round = 0; round < 5; round++) {
      const locals = gossip.map(({ parameters }, i) =>
        subtract(parameters, gaussian(300, 'step', String(round), String(i))),
      )
      exchange(GOSSIP, gossip, locals)
      exchange({ ...GOSSIP, rule: 'diloco' }, diloco, locals)
      expect(gossip).toEqual(diloco)
    }
    expect(gossip[0]!.parameters).not.toEqual(start)
  })

  test('alone is SNOO: Nesterov on the own pseudo-gradient', () => {
    const make = (): OuterState => ({
      parameters: gaussian(100, 'a'),
      momentum: gaussian(100, 'b'),
    })
    const [alone, snoo] = [make(), make()]
    const local = gaussian(100, 'c')
    exchange(GOSSIP, [alone], [local])
    nesterovStep(GOSSIP, snoo, subtract(snoo.parameters, local))
    expect(alone).toEqual(snoo)
  })
})

describe('the default rule with its codecs', () => {
  const { tolerance } = wire
  const pseudoGradientCodec = codecs['int4-64']
  const parametersCodec = codecs['int8-128']
  const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex')
  const scales = (bytes: Uint8Array, blocks: number) =>
    new Float32Array(bytes.slice(0, 4 * blocks).buffer)

  test('hits the vectors end to end: bytes exactly, state closely', () => {
    const states = statesOf(wire.phi0, wire.buf0)
    const size = wire.phi0[0]!.length
    for (const round of wire.rounds) {
      const sentPseudoGradients: Float32Array[] = []
      const sentParameters: Float32Array[] = []
      for (const [j, { parameters }] of states.entries()) {
        const message = round.messages[j]!
        const blocks4 = message.pg_scales.length
        const pg = pseudoGradientCodec.encode(subtract(parameters, floats(round.thetas[j]!)))
        expect(hex(pg.subarray(4 * blocks4))).toBe(message.pg_hex)
        expect(scales(pg, blocks4)).toEqual(floats(message.pg_scales))
        const blocks8 = message.phi_scales.length
        const phi = parametersCodec.encode(parameters)
        expect([...new Int8Array(phi.buffer, 4 * blocks8)]).toEqual(message.phi_codes)
        expect(scales(phi, blocks8)).toEqual(floats(message.phi_scales))
        sentPseudoGradients.push(pseudoGradientCodec.decode(pg, size))
        sentParameters.push(parametersCodec.decode(phi, size))
      }
      const exact = states.map(({ parameters }) => parameters.slice())
      for (const [self, state] of states.entries()) {
        const seen = sentParameters.map((vector, j) => (j === self ? exact[j]! : vector))
        const radii = { parameters: round.clip_radius, pseudoGradient: round.pg_clip_radius }
        const group = groupOf(self, sentPseudoGradients, seen, round.tokens, radii)
        outerStep(GOSSIP, state, group, self)
      }
      expectStates(states, round.phi, round.buf, tolerance)
    }
  })
})

describe('outerStep', () => {
  const size = 1000
  const pseudoGradients = [0, 1, 2].map((j) => gaussian(size, 'pg', String(j)))
  const parameters = [0, 1, 2].map((j) => gaussian(size, 'phi', String(j)))
  const group = groupOf(1, pseudoGradients, parameters, [3, 1, 2], {
    parameters: 20,
    pseudoGradient: 20,
  })
  const fresh = (): OuterState => ({
    parameters: parameters[1]!.slice(),
    momentum: gaussian(size, 'b'),
  })

  test.each(['gossip-diloco', 'adapt-then-combine', 'noloco', 'diloco'] as const)(
    'slice by slice is the whole vector, bit by bit: %s',
    (rule) => {
      const [whole, sliced] = [fresh(), fresh()]
      outerStep({ ...GOSSIP, rule }, whole, group, 1)
      for (const [from, to] of [
        [0, 128],
        [128, 999],
        [999, 1000],
      ] as const) {
        const part = (vector: Float32Array) => vector.subarray(from, to)
        outerStep(
          { ...GOSSIP, rule },
          { parameters: part(sliced.parameters), momentum: part(sliced.momentum) },
          group.map((member) => ({
            ...member,
            pseudoGradient: part(member.pseudoGradient!),
            parameters: part(member.parameters!),
          })),
          1,
        )
      }
      expect(sliced).toEqual(whole)
      expect(whole).not.toEqual(fresh())
    },
  )

  test('without clipping all members see the same mean pseudo-gradient, bit by bit', () => {
    const plain = groupOf(0, pseudoGradients, parameters, [3, 1, 2])
    const means = plain.map((_, self) => meanPseudoGradient(plain, self))
    expect(means[1]).toEqual(means[0])
    expect(means[2]).toEqual(means[0])
  })

  test('clipping bounds what one member can do', () => {
    const liar = pseudoGradients[0]!.map((value) => value * -1e5)
    const attacked = groupOf(1, [liar, ...pseudoGradients.slice(1)], parameters, [1, 1, 1], {
      pseudoGradient: 3,
      parameters: 3,
    })
    const [honest, defended] = [fresh(), fresh()]
    outerStep(GOSSIP, honest, group, 1)
    outerStep(GOSSIP, defended, attacked, 1)
    expect(distance(honest.parameters, defended.parameters)).toBeLessThan(200)
    expect(distance(defended.parameters, parameters[1]!)).toBeLessThan(200)
  })

  test('reads its exact parameters, not what the group brings for it', () => {
    const [exact, other] = [fresh(), fresh()]
    outerStep(GOSSIP, exact, group, 1)
    const replaced = group.map((member, j) =>
      j === 1 ? { ...member, parameters: undefined } : member,
    )
    outerStep(GOSSIP, other, replaced, 1)
    expect(other).toEqual(exact)
  })

  test('refuses groups without the peer itself, and members without what the rule needs', () => {
    expect(() => outerStep(GOSSIP, fresh(), group, 3)).toThrow(/no member 3 in a group of 3/)
    const lacking = group.map((member) => ({ ...member, parameters: undefined }))
    expect(() => outerStep(GOSSIP, fresh(), lacking, 1)).toThrow(/member 0.*brought no parameters/)
    const gradientless = group.map((member) => ({ ...member, pseudoGradient: undefined }))
    expect(() => outerStep(GOSSIP, fresh(), gradientless, 1)).toThrow(/no pseudo-gradient/)
    const state = fresh()
    const short = { parameters: state.parameters.subarray(1), momentum: state.momentum.subarray(1) }
    expect(() => outerStep(GOSSIP, short, group, 1)).toThrow(/do not match/)
  })
})
