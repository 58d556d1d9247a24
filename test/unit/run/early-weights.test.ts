import { expect, test } from 'vitest'
import { withWeights, type EarlyWeights } from '../../../src/run/early-weights.ts'
import type { Contribution } from '../../../src/run/contribution.ts'
import type { RoundExchange } from '../../../src/run/round.ts'

const plan: Contribution['plan'] = []
const own: Contribution = {
  peer: 'self',
  plan,
  chunks: [],
  header: {
    version: 1,
    run: 'run',
    outerStep: 0,
    phase: 'outer',
    schemaHash: 'a'.repeat(64),
    weight: 1,
    norm: 0,
    base: null,
    rejoins: false,
    digests: [],
  },
}

test('weights of a peer that has refused its pseudo-gradient are not waited for', async () => {
  const exchange: RoundExchange = {
    offer: () => {},
    setCollected: () => {},
    collectedBy: async () => undefined,
    pull: async () => ({
      kind: 'refused',
      refusal: 'stale',
      message: 'further',
      outerStep: 3,
      waitedMs: null,
      transferredMs: null,
    }),
  }
  const weights: EarlyWeights = { own, pull: () => new Promise(() => {}) }
  const options = {
    plan,
    schemaHash: own.header.schemaHash,
    signal: new AbortController().signal,
    patienceMs: 1,
    waits: true,
    transferMs: 1,
  }
  const pulled = await withWeights(exchange, own, weights).pull(
    'peer',
    { outerStep: 0, phase: 'outer' },
    options,
  )
  expect(pulled).toMatchObject({ kind: 'refused', refusal: 'stale', outerStep: 3 })
})
