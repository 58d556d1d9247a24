import { expect, test } from 'vitest'
import { ShoalError } from '../../../src/errors.ts'
import { DEADLINES } from '../../../src/limits.ts'
import type { PeerRpc } from '../../../src/net/network.ts'
import { pullContribution } from '../../../src/run/contribution-pull.ts'
import { createManualClock } from '../../manual-clock.ts'

test('a peer that vanished without a word is dialled a few times, not until patience ends', async () => {
  const clock = createManualClock()
  let dials = 0
  const rpc: PeerRpc = {
    handle: () => () => {},
    async call(peer) {
      dials++
      // The dial's own deadline, and what comes before and after it.
      await clock.sleep(DEADLINES.dialMs + 20)
      throw new ShoalError('peer_unreachable', `cannot reach peer ${peer}: connecting timed out`)
    },
  }
  const pulling = pullContribution(
    { rpc, clock, run: 'run' },
    'gone',
    { outerStep: 0, phase: 'outer' },
    {
      plan: [],
      schemaHash: 'a'.repeat(64),
      signal: new AbortController().signal,
      patienceMs: 600_000,
      waits: true,
      transferMs: 600_000,
    },
  )
  const startedMs = clock.now()
  let elapsedMs = Infinity
  void pulling.then(() => (elapsedMs = clock.now() - startedMs))
  for (let second = 0; second < 60; second++) await clock.advance(1_000)
  expect(elapsedMs).toBeLessThan(3 * DEADLINES.dialMs)
  expect(dials).toBe(2)
  expect(await pulling).toMatchObject({ kind: 'refused', refusal: 'unreachable' })
})
