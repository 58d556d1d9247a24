/** A data channel as a wire, between two real stacks. */
import { createHash, randomBytes } from 'node:crypto'
import { describe, expect, onTestFinished, test } from 'vitest'
import { systemClock } from '../../../../src/clock.ts'
import { LIMITS } from '../../../../src/limits.ts'
import { silentLogger } from '../../../../src/log.ts'
import { createMetrics } from '../../../../src/metrics.ts'
import { createFairRate } from '../../../../src/net/fair-rate.ts'
import { createIdentity } from '../../../../src/net/identity.ts'
import { createLibp2pLogger } from '../../../../src/net/libp2p-logger.ts'
import { readSession, writeSession } from '../../../../src/net/webrtc-session.ts'
import type { WebRtcConnection } from '../../../../src/net/webrtc-connection.ts'
import { createWebRtc } from '../../../../src/net/webrtc.ts'
import type { WebRtcAttempt } from '../../../../src/net/webrtc.ts'
import { createWireMetrics } from '../../../../src/net/wire-metrics.ts'
import { createManualClock } from '../../../manual-clock.ts'
import { until } from '../../net/memory-network.ts'
import { PeerConnection } from './webrtc-stack.ts'

const MIB = 1 << 20
const log = createLibp2pLogger(silentLogger).forComponent('test')
const { peerId: PEER } = await createIdentity()

function begin(direction: 'inbound' | 'outbound'): WebRtcAttempt {
  if (PeerConnection === undefined) throw new Error('there is no WebRTC here')
  const webRtc = createWebRtc({ PeerConnection, reflectors: () => [], clock: systemClock })
  const attempt = webRtc.begin(PEER, direction, log)
  onTestFinished(() => attempt.abort(new Error('the test is over')))
  return attempt
}

async function openPair(): Promise<[WebRtcConnection, WebRtcConnection]> {
  const signal = systemClock.deadline(30_000, 'a pair')
  const [caller, called] = [begin('outbound'), begin('inbound')]
  const offer = await caller.describe(undefined, signal)
  await caller.accept(await called.describe(offer, signal), signal)
  return await Promise.all([caller.run(signal), called.run(signal)])
}

/** A wire, and a peer that sends what it likes. */
async function openAgainst(): Promise<{ wire: WebRtcConnection; channel: RTCDataChannel }> {
  if (PeerConnection === undefined) throw new Error('there is no WebRTC here')
  const signal = systemClock.deadline(30_000, 'a pair')
  const called = begin('inbound')
  const raw = new PeerConnection({})
  onTestFinished(() => raw.close())
  const channel = raw.createDataChannel('shoal', { negotiated: true, id: 0 })
  await raw.setLocalDescription(await raw.createOffer())
  await until(() => raw.iceGatheringState === 'complete')
  const offer = readSession(raw.localDescription?.sdp ?? '')
  const answer = await called.describe(offer, signal)
  // Else the stack of this side keeps to the rules.
  const sdp = writeSession(answer, 'active').replace(/(max-message-size):\d+/, '$1:262144')
  await raw.setRemoteDescription({ type: 'answer', sdp })
  const wire = await called.run(signal)
  await until(() => channel.readyState === 'open')
  return { wire, channel }
}

/** Reads on; the bytes so far. */
function count(wire: WebRtcConnection): { bytes: number; sha256: () => string } {
  const hash = createHash('sha256')
  const counted = { bytes: 0, sha256: () => hash.digest('hex') }
  wire.addEventListener('message', ({ data }) => {
    hash.update(data.subarray())
    counted.bytes += data.byteLength
  })
  return counted
}

describe.skipIf(PeerConnection === undefined)('a data channel as a wire', () => {
  test('brings all bytes in order, both ways at once, before it closes', async () => {
    const [a, b] = await openPair()
    const [there, back] = [randomBytes(2 * MIB), randomBytes(2 * MIB)]
    const [atB, atA] = [count(b), count(a)]
    a.send(there)
    b.send(back)
    await until(() => atA.bytes === back.length)
    await a.close()
    await until(() => b.status === 'closed')
    expect(atB.bytes).toBe(there.length)
    expect(atB.sha256()).toBe(createHash('sha256').update(there).digest('hex'))
    expect(atA.sha256()).toBe(createHash('sha256').update(back).digest('hex'))
  })

  test('holds its sender back while its reader pauses', async () => {
    const [a, b] = await openPair()
    const received = count(b)
    b.pause()
    const bytes = 4 * MIB
    expect(a.send(randomBytes(bytes))).toBe(false)
    await until(() => b.readBufferLength >= 64 << 10)
    // Most of it has not even been sent.
    expect(a.writeBufferLength).toBeGreaterThan(bytes / 2)
    expect(received.bytes).toBe(0)
    b.resume()
    await until(() => received.bytes === bytes)
  })

  test('holds its sender back while a cap on downloads is used up', async () => {
    const [a, b] = await openPair()
    const clock = createManualClock()
    const caps = { download: createFairRate(MIB, clock) }
    onTestFinished(() => caps.download.stop())
    createWireMetrics(createMetrics(), clock, caps).trackMultiaddrConnection(b)
    const received = count(b)
    const bytes = 4 * MIB
    a.send(randomBytes(bytes))
    // By the cap's time, which stands.
    await until(() => b.readStatus === 'paused' && b.readBufferLength >= 64 << 10)
    expect(a.writeBufferLength).toBeGreaterThan(bytes / 2)
    expect(received.bytes).toBeLessThan(bytes / 2)
    while (received.bytes < bytes) await clock.advance(100)
    expect(a.writeBufferLength).toBe(0)
    expect([a.status, b.status]).toEqual(['open', 'open'])
  })

  test.each<[string, (channel: RTCDataChannel) => void]>([
    ['text', (channel) => channel.send('hello')],
    ['a claim to have taken what was never sent', (channel) => channel.send('1000')],
    ['a number that is none', (channel) => channel.send('9'.repeat(1000))],
    [
      'a message that is too long',
      (channel) => channel.send(new Uint8Array(LIMITS.webRtcMessageBytes + 1)),
    ],
  ])('ends at %s', async (_what, send) => {
    const { wire, channel } = await openAgainst()
    send(channel)
    await until(() => wire.status === 'aborted')
    await until(() => channel.readyState === 'closed')
  })

  test('ends when more comes than was allowed while its reader pauses', async () => {
    const { wire, channel } = await openAgainst()
    wire.pause()
    const message = new Uint8Array(LIMITS.webRtcMessageBytes)
    const isOpen = (): boolean => channel.readyState === 'open'
    try {
      while (isOpen()) {
        for (let sent = 0; sent < MIB; sent += message.length) channel.send(message)
        await until(() => !isOpen() || channel.bufferedAmount < MIB)
      }
    } catch {
      // It was closed between two messages.
    }
    await until(() => wire.status === 'aborted')
  })
})
