/** PCP and NAT-PMP against a router of this test that reads and writes the bytes of the RFCs itself. */
import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { defaultGateway, linuxGateway, printedGateway } from '../../../../node/net/gateway.ts'
import { createPcpClient } from '../../../../node/net/pcp.ts'
import type { PcpClient } from '../../../../node/net/pcp.ts'
import {
  decodeRouterReply,
  encodeNatPmpAddress,
  encodeNatPmpMap,
  encodePcpMap,
} from '../../../../node/net/pcp-messages.ts'
import { keepPortMapped } from '../../../../node/net/port-mapping.ts'
import { systemClock } from '../../../../src/clock.ts'
import type { Clock } from '../../../../src/clock.ts'
import { createMetrics } from '../../../../src/metrics.ts'
import { createManualClock } from '../../../manual-clock.ts'
import { createRecorder, until } from '../../net/memory-network.ts'
import { startPcpRouter } from './pcp-router.ts'

const signal = AbortSignal.timeout(60_000)
const PORT = 4010
const NONCE = Buffer.from('000102030405060708090a0b', 'hex')
const OUTSIDE = { host: '11.0.1.1', port: PORT }
const NOWHERE = { host: '127.0.0.1', port: 9 }

/** Waits for no answer a tenth as long. */
const hasty: Clock = {
  ...systemClock,
  sleep: (ms, signalled) => systemClock.sleep(ms / 10, signalled),
}

function startClient(clock = systemClock): {
  client: PcpClient
  ignored: string[]
  restarts: string[]
} {
  const ignored: string[] = []
  const restarts: string[] = []
  const client = createPcpClient({
    port: PORT,
    clock,
    onIgnored: (reason) => void ignored.push(reason),
    onRestart: (router) => void restarts.push(router),
  })
  return { client, ignored, restarts }
}

describe('a message', () => {
  const request = { localHost: '192.168.1.100', nonce: NONCE, port: PORT, outsidePort: PORT }

  test('has the bytes of the RFCs', () => {
    expect(encodePcpMap({ ...request, seconds: 3600 }).toString('hex')).toBe(
      '0201000000000e10' +
        '00000000000000000000ffffc0a80164' +
        '000102030405060708090a0b' +
        '060000000faa0faa' +
        '00000000000000000000ffff00000000',
    )
    expect(encodePcpMap({ ...request, seconds: 0 }).toString('hex', 36)).toBe(
      '060000000faa000000000000000000000000ffff00000000',
    )
    expect(encodeNatPmpAddress().toString('hex')).toBe('0000')
    const map = encodeNatPmpMap({ ...request, seconds: 3600 })
    expect(map.toString('hex')).toBe('000200000faa0faa00000e10')
    const end = encodeNatPmpMap({ ...request, seconds: 0 })
    expect(end.toString('hex')).toBe('000200000faa000000000000')
  })

  test.each([
    [
      'a PCP mapping',
      '0281000000000e10000013880000000000000000000000000001020304050607' +
        '08090a0b060000000faa138800000000000000000000ffff0b000101',
      {
        kind: 'pcp-map',
        result: 0,
        epoch: 5000,
        seconds: 3600,
        nonce: NONCE,
        port: PORT,
        outsidePort: 5000,
        outsideHost: '11.0.1.1',
      },
    ],
    [
      'no version 2',
      '018100010000000000001388000000000000000000000000',
      { kind: 'unsupported', result: 1, epoch: 5000 },
    ],
    [
      'an address',
      '00800000000013880b000101',
      { kind: 'nat-pmp-address', result: 0, epoch: 5000, outsideHost: '11.0.1.1' },
    ],
    [
      'a mapping',
      '00820000000013880faa138800000e10',
      {
        kind: 'nat-pmp-map',
        result: 0,
        epoch: 5000,
        port: PORT,
        outsidePort: 5000,
        seconds: 3600,
      },
    ],
    ['no PCP', '0081000100001388', { kind: 'unsupported', result: 1, epoch: 5000 }],
  ])('is read: %s', (_what, hex, expected) => {
    expect(decodeRouterReply(Buffer.from(hex, 'hex'))).toEqual(expected)
  })

  test.each([
    ['nothing', ''],
    ['a question', '020100000000000000000000000000000000000000000000'],
    ['too short a header', '0281000000000e1000001388'],
    ['a header alone', '028100000000000000001388000000000000000000000000'],
    ['another opcode', `0282${'00'.repeat(58)}`],
    ['another protocol', `0281${'00'.repeat(34)}11${'00'.repeat(23)}`],
    ['an odd length', `0281${'00'.repeat(59)}`],
    ['too much', `0281${'00'.repeat(1102)}`],
    ['an address that is cut', '00800000000013880b0001'],
    ['a mapping that is cut', '00820000000013880faa1388'],
    ['a mapping for UDP', '00810000000013880faa138800000e10'],
  ])('that is %s is not read', (_what, hex) => {
    expect(decodeRouterReply(Buffer.from(hex, 'hex'))).toBe(undefined)
  })

  test('of any bytes is read or refused, and changed ones never make the reader fail', () => {
    const answers = [
      encodePcpMap({ ...request, seconds: 3600 }),
      encodeNatPmpMap({ ...request, seconds: 3600 }),
    ].map((bytes) => {
      const answer = Buffer.concat([bytes, Buffer.alloc(bytes.length === 12 ? 4 : 0)])
      answer[1] = (answer[1] ?? 0) | 0x80
      return answer
    })
    const changes = fc.array(fc.tuple(fc.nat(63), fc.nat(255)), { maxLength: 8 })
    const changed = fc.tuple(fc.constantFrom(...answers), changes, fc.nat(64)).map((drawn) => {
      const [answer, places, length] = drawn
      const bytes = Buffer.from(answer)
      for (const [at, value] of places) bytes[at % bytes.length] = value
      return bytes.subarray(0, Math.max(0, bytes.length - (length > 60 ? length - 60 : 0)))
    })
    const anything = fc.uint8Array({ maxLength: 1200 }).map((bytes) => Buffer.from(bytes))
    fc.assert(
      fc.property(fc.oneof(anything, changed), (bytes) => {
        const reply = decodeRouterReply(bytes)
        if (reply === undefined) return
        expect(bytes.length).toBeGreaterThanOrEqual(8)
        expect((bytes[1] ?? 0) & 0x80).toBe(0x80)
        expect(reply.result).toBeLessThan(65_536)
        if (reply.kind === 'pcp-map') expect(reply.nonce).toHaveLength(12)
      }),
      { seed: 6887, numRuns: 2000 },
    )
  })
})

describe('a router with PCP', () => {
  test('forwards a port, from another one outside if it likes, renews it, and takes it back', async () => {
    const router = await startPcpRouter({ speaks: 'pcp', gives: 5000 })
    const { client, ignored, restarts } = startClient()
    const outside = { ...OUTSIDE, port: 5000 }
    const granted = {
      forwarding: { protocol: 'pcp', router: '127.0.0.1', port: PORT, outside },
      seconds: 3600,
    }
    expect(await client.map(router.at, 3600, signal)).toEqual(granted)
    expect(await client.map(router.at, 3600, signal)).toEqual(granted)
    const [first = '', second = ''] = router.asked
    // The same mapping, known by its nonce; and what was given is wished for.
    expect(second.slice(48, 72)).toBe(first.slice(48, 72))
    expect(first.slice(80, 88)).toBe('0faa0faa')
    expect(second.slice(80, 88)).toBe('0faa1388')
    expect(router.mapped).toEqual(new Map([[PORT, 5000]]))
    await client.unmap(signal)
    expect(router.mapped.size).toBe(0)
    expect(router.asked.at(-1)?.slice(80, 88)).toBe('0faa0000')
    expect(ignored).toEqual([])
    expect(restarts).toEqual([])
  })

  test('that refuses says why', async () => {
    const router = await startPcpRouter({ speaks: 'pcp', result: 12 })
    const { client } = startClient()
    await expect(client.map(router.at, 3600, signal)).rejects.toMatchObject({
      code: 'refused',
      message: 'the router refuses: there is another NAT in between',
    })
  })

  test('is told from those that send packets in its place, which are counted', async () => {
    const router = await startPcpRouter({
      speaks: 'pcp',
      before(question) {
        const answer = Buffer.from(question)
        answer[1] = 0x81
        answer.writeUInt16BE(6666, 42)
        const otherNonce = Buffer.from(answer)
        otherNonce[30] = (otherNonce[30] ?? 0) ^ 1
        const otherPort = Buffer.from(answer)
        otherPort.writeUInt16BE(4011, 40)
        return [
          { bytes: answer, isElsewhere: true },
          { bytes: otherNonce },
          { bytes: otherPort },
          { bytes: answer.subarray(0, 40) },
          { bytes: Buffer.of(2) },
          { bytes: question },
        ]
      },
    })
    const { client, ignored } = startClient()
    const grant = await client.map(router.at, 3600, signal)
    expect(grant?.forwarding.outside).toEqual(OUTSIDE)
    const counts = (reason: string): number => ignored.filter((told) => told === reason).length
    expect(counts('source')).toBeGreaterThanOrEqual(1)
    expect(counts('stranger')).toBeGreaterThanOrEqual(2)
    expect(counts('malformed')).toBeGreaterThanOrEqual(3)
  })

  test('that has begun anew is noticed by its clock, and forwards again', async () => {
    const router = await startPcpRouter({ speaks: 'pcp' })
    const { client, restarts } = startClient()
    await client.map(router.at, 3600, signal)
    router.epoch += 1
    await client.map(router.at, 3600, signal)
    expect(restarts).toEqual([])
    router.epoch = 3
    router.mapped.clear()
    await client.map(router.at, 3600, signal)
    expect(restarts).toEqual(['127.0.0.1'])
    expect(router.mapped.get(PORT)).toBe(PORT)
  })
})

describe('a router with NAT-PMP only', () => {
  test('says so, forwards a port, and takes it back', async () => {
    const router = await startPcpRouter({ speaks: 'nat-pmp', gives: 5000 })
    const { client, restarts } = startClient()
    const outside = { ...OUTSIDE, port: 5000 }
    const grant = await client.map(router.at, 3600, signal)
    expect(grant).toEqual({
      forwarding: { protocol: 'nat-pmp', router: '127.0.0.1', port: PORT, outside },
      seconds: 3600,
    })
    const before = router.asked.length
    router.epoch = 0
    await client.map(router.at, 3600, signal)
    expect(restarts).toEqual(['127.0.0.1'])
    // It is not asked by PCP again.
    expect(router.asked.slice(before).every((hex) => hex.startsWith('00'))).toBe(true)
    expect(router.mapped).toEqual(new Map([[PORT, 5000]]))
    await client.unmap(signal)
    expect(router.mapped.size).toBe(0)
  })

  test('that refuses says why', async () => {
    const router = await startPcpRouter({ speaks: 'nat-pmp', result: 2 })
    await expect(startClient().client.map(router.at, 3600, signal)).rejects.toMatchObject({
      message: 'the router refuses: not authorized',
    })
  })
})

test('a router with neither is silent, and given nothing back', async () => {
  const router = await startPcpRouter({ speaks: 'nothing' })
  const { client } = startClient(hasty)
  expect(await client.map(router.at, 3600, signal)).toBe(undefined)
  const { length } = router.asked
  await client.unmap(signal)
  expect(router.asked).toHaveLength(length)
})

describe('a node', () => {
  test.each(['pcp', 'nat-pmp'] as const)('keeps its port forwarded by %s', async (speaks) => {
    const router = await startPcpRouter({ speaks })
    const { logger, events } = createRecorder()
    const mapping = keepPortMapped({
      port: PORT,
      clock: systemClock,
      logger,
      metrics: createMetrics(),
      gateway: async () => router.at,
      searchAt: NOWHERE,
    })
    await until(() => mapping.forwarding() !== undefined)
    const forwarding = { protocol: speaks, router: '127.0.0.1', port: PORT, outside: OUTSIDE }
    expect(mapping.forwarding()).toEqual(forwarding)
    expect(events.find(({ event }) => event === 'port_mapped')?.fields).toEqual(forwarding)
    await mapping.close()
    expect(router.mapped.size).toBe(0)
  })

  test('keeps what a router that has fallen silent granted, until the lease ends, and gives it back', async () => {
    const router = await startPcpRouter({ speaks: 'pcp' })
    const { logger } = createRecorder()
    const clock = createManualClock()
    const gateway = async (): Promise<typeof router.at> => router.at
    const metrics = createMetrics()
    const options = { port: PORT, clock, logger, metrics, gateway, searchAt: NOWHERE }
    const mapping = keepPortMapped(options)
    await until(() => mapping.forwarding() !== undefined)
    router.behaviour.speaks = 'nothing'
    const { length } = router.asked
    const later = async (check: () => boolean, stepMs = 500): Promise<void> => {
      while (!check()) {
        await clock.advance(stepMs)
        await new Promise((resolve) => setTimeout(resolve, 1))
      }
    }
    await later(() => router.asked.length > length + 3)
    expect(mapping.forwarding()).toMatchObject({ protocol: 'pcp' })
    await later(() => mapping.forwarding() === undefined, 60_000)
    router.behaviour.speaks = 'pcp'
    await later(() => mapping.forwarding() !== undefined)
    router.behaviour.speaks = 'nothing'
    const again = router.asked.length
    await later(() => router.asked.length > again + 3)
    router.behaviour.speaks = 'pcp'
    await mapping.close()
    expect(router.mapped.size).toBe(0)
  })

  test('that ends before the answer has come gives the port back', async () => {
    const router = await startPcpRouter({ speaks: 'pcp' })
    const metrics = createMetrics()
    // Answers are lost in a storm of others.
    router.behaviour.before = () => [{ bytes: Buffer.of(9, 9) }, { bytes: Buffer.of(9) }]
    const { logger } = createRecorder()
    const gateway = async (): Promise<typeof router.at> => router.at
    const options = { port: PORT, clock: systemClock, logger, metrics, gateway, searchAt: NOWHERE }
    const mapping = keepPortMapped(options)
    await until(() => router.mapped.size === 1)
    await mapping.close()
    expect(router.mapped.size).toBe(0)
    expect(metrics.read('router_packets_ignored_total', 'malformed')).toBeGreaterThan(0)
  })
})

describe('the gateway', () => {
  test('is read from the routes of Linux', () => {
    const text = `Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
eth1\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0
eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
`
    expect(linuxGateway(text)).toBe('192.168.1.1')
    expect(linuxGateway('Iface\n')).toBe(undefined)
    expect(linuxGateway(`x\neth0\t00000000\tZZZZZZZZ\t0003\t0\t0\t0\t00000000\n`)).toBe(undefined)
  })

  test('is read from what macOS and Windows print', () => {
    const mac = `Routing tables

Internet:
Destination        Gateway            Flags               Netif Expire
default            link#18            UCSIg           bridge100      !
default            192.168.1.254      UGScg                 en0
127                127.0.0.1          UCS                   lo0

Internet6:
default            fe80::%utun0       UGcIg               utun0
`
    expect(printedGateway(mac)).toBe('192.168.1.254')
    const windows = `IPv4 Route Table
Active Routes:
Network Destination        Netmask          Gateway       Interface  Metric
          0.0.0.0          0.0.0.0      192.168.0.1    192.168.0.15     35
`
    expect(printedGateway(windows)).toBe('192.168.0.1')
    expect(printedGateway('default\n0.0.0.0 0.0.0.0 On-link')).toBe(undefined)
  })

  test('of this machine is an address, if it has one', async () => {
    const host = await defaultGateway(signal)
    expect(host === undefined || /^\d+\.\d+\.\d+\.\d+$/.test(host)).toBe(true)
  })
})
