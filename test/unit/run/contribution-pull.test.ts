import { describe, expect, test } from 'vitest'
import { ShoalError } from '../../../src/errors.ts'
import { DEADLINES } from '../../../src/limits.ts'
import type { PeerRpc } from '../../../src/net/network.ts'
import { askCollected, pullContribution } from '../../../src/run/contribution-pull.ts'
import { waitingRequestSchema } from '../../../src/run/exchange-messages.ts'
import { encodeCbor } from '../../../src/store/content.ts'
import { parseMessage } from '../../../src/store/message.ts'
import { createManualClock, type ManualClock } from '../../manual-clock.ts'

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

describe('a partner that answers that it is not ready', () => {
  const KEY = { outerStep: 5, phase: 'outer' } as const
  const SCHEMA_HASH = 'a'.repeat(64)
  const header = {
    version: 1,
    run: 'run',
    ...KEY,
    schemaHash: SCHEMA_HASH,
    weight: 1,
    norm: 0,
    base: null,
    rejoins: false,
    digests: [],
  }
  const patience = { patienceMs: 1_000, latenessMs: 2_000, signal: new AbortController().signal }
  const options = { plan: [], schemaHash: SCHEMA_HASH, waits: true, transferMs: 1_000, ...patience }

  /** It has completed `outerStep`, holds its answers back as asked to, and is ready after `readyMs`. */
  function late(clock: ManualClock, outerStep: number, readyMs: number, ready: unknown): PeerRpc {
    const startedMs = clock.now()
    return {
      handle: () => () => {},
      async call(_peer, _method, request, { signal } = {}) {
        const { waitMs } = parseMessage(waitingRequestSchema, request, 'question')
        const untilReadyMs = readyMs - (clock.now() - startedMs)
        await clock.sleep(Math.min(waitMs, Math.max(0, untilReadyMs)), signal)
        return encodeCbor(untilReadyMs <= waitMs ? ready : { refusal: 'not_ready', outerStep })
      },
    }
  }

  async function elapsed<T>(clock: ManualClock, asking: Promise<T>): Promise<[number, T]> {
    const startedMs = clock.now()
    let elapsedMs = Infinity
    void asking.then(() => (elapsedMs = clock.now() - startedMs))
    for (let moment = 0; moment < 500; moment++) await clock.advance(10)
    return [elapsedMs, await asking]
  }

  const pull = async (outerStep: number, readyMs: number): Promise<[number, string]> => {
    const clock = createManualClock()
    const rpc = late(clock, outerStep, readyMs, { header })
    const pulling = pullContribution({ rpc, clock, run: 'run' }, 'late', KEY, options)
    const [elapsedMs, pulled] = await elapsed(clock, pulling)
    return [elapsedMs, pulled.kind === 'refused' ? pulled.message : pulled.kind]
  }

  test('is waited for longer while it is in a round before, but not for ever', async () => {
    expect(await pull(4, 2_500)).toEqual([2_500, 'contribution'])
    const tooLong = 'waiting for a partner took longer than 3000 ms'
    expect(await pull(4, 9_000)).toEqual([3_000, tooLong])
  })

  test('is not waited for any longer when it is only slow', async () => {
    const tooLong = 'waiting for a partner took longer than 1000 ms'
    expect(await pull(5, 2_500)).toEqual([1_000, tooLong])
    // Nor when it is further behind: it will not come in time.
    expect(await pull(3, 2_500)).toEqual([1_000, tooLong])
  })

  test('is asked for its set until it has one', async () => {
    const clock = createManualClock()
    const rpc = late(clock, 5, 2_500, { peers: ['a', 'b'] })
    const asking = askCollected({ rpc, clock, run: 'run' }, 'late', KEY, patience)
    expect(await elapsed(clock, asking)).toEqual([2_500, ['a', 'b']])
  })
})
