import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { connect } from 'node:net'
import { networkInterfaces } from 'node:os'
import * as fc from 'fast-check'
import { describe, expect, onTestFinished, test } from 'vitest'
import { natProbe } from '../../../../node/net/nat-probe.ts'
import {
  decodeStun,
  encodeRequest,
  encodeResponse,
  messageLength,
  TRANSACTION_BYTES,
} from '../../../../node/net/stun.ts'
import { systemClock } from '../../../../src/clock.ts'
import { tcpPuncher } from '../../../../node/net/tcp-punch.ts'
import { udpPuncher } from '../../../../node/net/udp-punch.ts'
import { createLibp2pLogger } from '../../../../src/net/libp2p-logger.ts'
import { silentLogger } from '../../../../src/log.ts'
import { until } from '../../net/memory-network.ts'
import { startReflector } from './relay-network.ts'

const transaction = fc.uint8Array({ minLength: TRANSACTION_BYTES, maxLength: TRANSACTION_BYTES })

describe('messages', () => {
  test('come back as they were written', () => {
    fc.assert(
      fc.property(transaction, fc.ipV4(), fc.integer({ min: 1, max: 65_535 }), (id, host, port) => {
        const bytes = encodeResponse(id, { host, port })
        expect(messageLength(bytes)).toBe(bytes.length)
        expect(decodeStun(bytes)).toEqual({
          kind: 'response',
          transaction: Buffer.from(id),
          mapped: { host, port },
        })
      }),
    )
    for (const change of ['none', 'port', 'address-and-port'] as const) {
      const id = Buffer.alloc(TRANSACTION_BYTES, 7)
      expect(decodeStun(encodeRequest(id, change))).toEqual({
        kind: 'request',
        transaction: id,
        change,
      })
    }
  })

  test('of IPv6 name an address as systems write it', () => {
    for (const host of ['2a0f:1::10', '::1', '2606:4700:0:1::ff00:42', 'fd00:1:2:3:4:5:6:7']) {
      const bytes = encodeResponse(Buffer.alloc(TRANSACTION_BYTES, 3), { host, port: 4010 })
      expect(decodeStun(bytes)).toMatchObject({ mapped: { host, port: 4010 } })
    }
  })

  test('that are none are nothing, whatever they are', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 600 }), (bytes) => {
        expect(() => decodeStun(Buffer.from(bytes))).not.toThrow()
      }),
    )
    // One that is almost: each byte turned once.
    const whole = encodeResponse(Buffer.alloc(TRANSACTION_BYTES), { host: '192.0.2.1', port: 7 })
    for (const [index] of whole.entries()) {
      const turned = Buffer.from(whole)
      turned[index] = (turned[index] ?? 0) ^ 0xff
      expect(() => decodeStun(turned)).not.toThrow()
      expect(() => decodeStun(whole.subarray(0, index))).not.toThrow()
    }
  })
})

describe('a reflector', () => {
  test('tells by UDP and TCP where a packet came from', async () => {
    const [port = 0] = await startReflector()
    const socket = createSocket('udp4')
    onTestFinished(() => void socket.close())
    socket.bind(0, '127.0.0.1')
    await once(socket, 'listening')
    const id = Buffer.alloc(TRANSACTION_BYTES, 1)
    socket.send(Buffer.from('junk'), port, '127.0.0.1')
    socket.send(encodeRequest(id), port, '127.0.0.1')
    const [answer]: unknown[] = await once(socket, 'message')
    const mapped = { host: '127.0.0.1', port: socket.address().port }
    expect(Buffer.isBuffer(answer) && decodeStun(answer)).toMatchObject({ transaction: id, mapped })

    const tcp = connect(port, '127.0.0.1')
    onTestFinished(() => void tcp.destroy())
    await once(tcp, 'connect')
    tcp.write(encodeRequest(id))
    const [overTcp]: unknown[] = await once(tcp, 'data')
    const { localPort } = tcp
    expect(Buffer.isBuffer(overTcp) && decodeStun(overTcp)).toMatchObject({
      mapped: { host: '127.0.0.1', port: localPort },
    })
  })

  test('ends a connection that sends anything else', async () => {
    const [port = 0] = await startReflector()
    const tcp = connect(port, '127.0.0.1')
    await once(tcp, 'connect')
    tcp.write('GET / HTTP/1.1\r\n\r\n')
    await once(tcp, 'close')
  })

  test('answers one that floods no more', async () => {
    const [port = 0] = await startReflector()
    const socket = createSocket('udp4')
    onTestFinished(() => void socket.close())
    let answers = 0
    socket.on('message', () => answers++)
    const startedMs = performance.now()
    for (let time = 0; time < 500; time++) {
      socket.send(encodeRequest(Buffer.alloc(TRANSACTION_BYTES, time)), port, '127.0.0.1')
      if (time % 50 === 0) await systemClock.sleep(5, new AbortController().signal)
    }
    await until(() => answers > 10)
    await systemClock.sleep(200, new AbortController().signal)
    // 60 at once, and 10 a second since.
    const allowed = 61 + ((performance.now() - startedMs) / 1000) * 10
    expect(answers).toBeLessThan(allowed)
  })

  test('by IPv6 is asked where IPv4 does not get out, and beside IPv4 only then', async (context) => {
    const own = Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? [])
    context.skip(!own.some(({ address }) => address === '::1'), 'no IPv6 on this machine')
    const ports = await startReflector()
    const [by4, by6] = ['127.0.0.1', '::1'].map((host) => ({ peer: 'p', host, ports }))
    if (by4 === undefined || by6 === undefined) throw new Error('two')
    const signal = AbortSignal.timeout(20_000)
    const [alone, beside] = await Promise.all([
      natProbe()([by6], signal),
      natProbe()([by6, by4], signal),
    ])
    expect(alone).toMatchObject({
      type: 'open',
      udp: { outside: { host: '::1' }, mapping: 'independent' },
      tcp: { outside: { host: '::1' }, mapping: 'independent' },
    })
    expect(beside).toMatchObject({
      type: 'open',
      udp: { outside: { host: '127.0.0.1' } },
    })
  })

  test('of IPv4 is what holes are made with, and IPv6 addresses are knocked at by none', async () => {
    const ports = await startReflector()
    const reflectors = ['::1', '127.0.0.1'].map((host) => ({ peer: 'p', host, ports }))
    const signal = AbortSignal.timeout(20_000)
    for (const puncher of [tcpPuncher(), udpPuncher()]) {
      const attempt = await puncher.prepare(reflectors, signal)
      onTestFinished(() => attempt.close())
      expect(attempt.offer.outside.host).toBe('127.0.0.1')
      const outside = { host: '2a0f:1::10', port: 4010 }
      const token = Buffer.alloc(16)
      const log = createLibp2pLogger(silentLogger).forComponent('test')
      const role = { isInitiator: true, token, peer: 'p', signal, log }
      const run = attempt.run({ outside, mapping: 'independent', streamId: 1 }, role)
      await expect(run).rejects.toMatchObject({ code: 'refused' })
    }
  })

  test('shows that there is no NAT on this machine', async () => {
    const ports = await startReflector()
    const reflectors = [{ peer: 'p', host: '127.0.0.1', ports }]
    const report = await natProbe()(reflectors, AbortSignal.timeout(20_000))
    expect(report).toMatchObject({
      type: 'open',
      udp: { outside: { host: '127.0.0.1' }, mapping: 'independent' },
      tcp: { outside: { host: '127.0.0.1' }, mapping: 'independent' },
    })
  })
})
