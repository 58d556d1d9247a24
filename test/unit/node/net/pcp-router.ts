/** A router on loopback that speaks PCP or NAT-PMP, byte by byte as the RFCs draw the packets. */
import { createSocket } from 'node:dgram'
import type { RemoteInfo, Socket } from 'node:dgram'
import { once } from 'node:events'
import { onTestFinished } from 'vitest'
import type { Endpoint } from '../../../../src/net/nat.ts'

export interface RouterBehaviour {
  speaks: 'pcp' | 'nat-pmp' | 'nothing'
  /** The outside port that it gives, if not the wished one. */
  gives?: number
  /** Result code of its answers to MAP. */
  result?: number
  /** Sends these first, before each answer. */
  before?: (question: Buffer) => { bytes: Buffer; isElsewhere?: boolean }[]
}

export interface PcpRouter {
  at: Endpoint
  /** All that was asked, in hexadecimal. */
  asked: string[]
  /** Outside port of each inside port. */
  mapped: Map<number, number>
  /** Of the answers from now on. */
  epoch: number
  behaviour: RouterBehaviour
}

const OUTSIDE = Buffer.of(11, 0, 1, 1)

export async function startPcpRouter(behaviour: RouterBehaviour): Promise<PcpRouter> {
  const [socket, elsewhere] = [await openSocket(), await openSocket()]
  const router: PcpRouter = {
    at: { host: '127.0.0.1', port: socket.address().port },
    asked: [],
    mapped: new Map(),
    epoch: 5000,
    behaviour,
  }
  socket.on('message', (question: Buffer, from: RemoteInfo) => {
    router.asked.push(question.toString('hex'))
    const packets = router.behaviour.before?.(question) ?? []
    for (const { bytes, isElsewhere = false } of packets) {
      const sender = isElsewhere ? elsewhere : socket
      sender.send(bytes, from.port, from.address)
    }
    const answer = answerOf(question, router)
    if (answer === undefined) return
    // After those of the other socket.
    setTimeout(() => socket.send(answer, from.port, from.address), packets.length > 0 ? 50 : 0)
  })
  return router
}

async function openSocket(): Promise<Socket> {
  const socket = createSocket('udp4')
  socket.on('error', () => {})
  socket.bind(0, '127.0.0.1')
  await once(socket, 'listening')
  onTestFinished(() => void socket.close())
  return socket
}

function answerOf(question: Buffer, router: PcpRouter): Buffer | undefined {
  const { speaks } = router.behaviour
  if (speaks === 'nothing') return undefined
  if (speaks === 'pcp') return question[0] === 2 ? pcpAnswer(question, router) : undefined
  if (question[0] === 0) return natPmpAnswer(question, router)
  // RFC 6886 §3.5: version 0, the opcode with its highest bit set, unsupported version.
  const answer = Buffer.from('0081000100000000', 'hex')
  answer.writeUInt32BE(router.epoch, 4)
  return answer
}

/** RFC 6887 figures 3 and 10. */
function pcpAnswer(question: Buffer, { behaviour, mapped, epoch }: PcpRouter): Buffer {
  const answer = Buffer.from(question)
  const [seconds, inside, wished] = [
    question.readUInt32BE(4),
    question.readUInt16BE(40),
    question.readUInt16BE(42),
  ]
  answer[1] = 0x81
  answer[2] = 0
  answer[3] = behaviour.result ?? 0
  answer.writeUInt32BE(epoch, 8)
  answer.fill(0, 12, 24)
  if (behaviour.result !== undefined) return answer
  const outside = seconds === 0 ? 0 : (behaviour.gives ?? wished)
  if (seconds === 0) mapped.delete(inside)
  else mapped.set(inside, outside)
  answer.writeUInt16BE(outside, 42)
  OUTSIDE.copy(answer, 56)
  return answer
}

/** RFC 6886 §3.2 and §3.3. */
function natPmpAnswer(question: Buffer, { behaviour, mapped, epoch }: PcpRouter): Buffer {
  const header = Buffer.alloc(8)
  header[1] = 128 + (question[1] ?? 0)
  header.writeUInt32BE(epoch, 4)
  if (question[1] === 0) return Buffer.concat([header, OUTSIDE])
  header.writeUInt16BE(behaviour.result ?? 0, 2)
  const [inside, wished, seconds] = [
    question.readUInt16BE(4),
    question.readUInt16BE(6),
    question.readUInt32BE(8),
  ]
  const outside = seconds === 0 ? 0 : (behaviour.gives ?? wished)
  if (behaviour.result === undefined) {
    if (seconds === 0) mapped.delete(inside)
    else mapped.set(inside, outside)
  }
  const rest = Buffer.alloc(8)
  rest.writeUInt16BE(inside, 0)
  rest.writeUInt16BE(outside, 2)
  rest.writeUInt32BE(seconds, 4)
  return Buffer.concat([header, rest])
}
