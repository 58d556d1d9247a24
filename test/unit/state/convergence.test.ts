/**
 * Random writers, links, losses, doublings, delays and restarts, with a peer among them that replays and mangles
 * whatever it hears. Then the links heal, and all must see the same, within the bounds.
 */
import { describe, expect, test } from 'vitest'
import { LIMITS } from '../../../src/limits.ts'
import { seededRandom, type Random } from '../../../src/random.ts'
import {
  decodePush,
  encodePush,
  encodeSyncReply,
  encodeSyncRequest,
  decodeSyncReply,
} from '../../../src/state/messages.ts'
import { identityOf, record, RUN, useTestSwarm, type TestMember, type TestSwarm } from './swarm.ts'

const start = useTestSwarm()
const NAMES = ['anna', 'ben', 'cleo', 'dora', 'emil', 'fay', 'gus']
const ADMINS = ['anna', 'ben', 'cleo']

/** A member that keeps every envelope it hears of, and sends them on as it likes. */
async function joinReplayer(
  swarm: TestSwarm,
  random: Random,
): Promise<{ peer: string; act: () => Promise<void> }> {
  const { peerId } = await identityOf('replayer')
  const { rpc, connectedPeers } = swarm.network.join(peerId)
  const heard: Uint8Array[] = []
  rpc.handle('state/push', async (bytes) => {
    heard.push(...decodePush(bytes).parts.flatMap(({ envelopes }) => envelopes))
    return new Uint8Array(0)
  })
  rpc.handle('state/sync', async () =>
    encodeSyncReply({ parts: [], proofs: [], wanted: [], more: false }),
  )
  return {
    peer: peerId,
    async act() {
      const peers = connectedPeers()
      const peer = peers[random.integer(peers.length)]
      if (peer === undefined) return
      const request = encodeSyncRequest({ run: RUN, heads: [], proven: [] })
      const reply = decodeSyncReply(await rpc.call(peer, 'state/sync', request))
      heard.push(...reply.parts.flatMap(({ envelopes }) => envelopes))
      heard.splice(0, Math.max(0, heard.length - 500))
      const envelopes = Array.from({ length: Math.min(4, heard.length) }, () => {
        const bytes = heard[random.integer(heard.length)]!
        const mangled = random.uniform() < 0.05
        return mangled ? bytes.with(random.integer(bytes.length), random.integer(256)) : bytes
      })
      if (envelopes.length === 0) return
      const ageMs = random.integer(2) === 0 ? 0 : random.integer(70_000)
      const push = encodePush({ run: RUN, parts: [{ ageMs, envelopes }], proofs: [] })
      await rpc.call(peer, 'state/push', push)
    },
  }
}

interface Life {
  member: TestMember
  life: number
  outerStep: number
}

async function restart(swarm: TestSwarm, name: string, lives: Map<string, Life>): Promise<void> {
  const { member, life } = lives.get(name)!
  for (const other of lives.values()) swarm.network.disconnect(member.peer, other.member.peer)
  const closed = member.service.close()
  await swarm.clock.advance(3_000)
  await closed
  const { records } = member
  const again = await swarm.member(name, { records, life: life + 1 })
  lives.set(name, { member: again, life: life + 1, outerStep: 0 })
}

async function step(swarm: TestSwarm, lives: Map<string, Life>, random: Random): Promise<void> {
  const { network, clock } = swarm
  const pick = (): Life => lives.get(NAMES[random.integer(NAMES.length)]!)!
  const dice = random.integer(100)
  const chosen = pick()
  if (dice < 35) {
    chosen.outerStep++
    const { outerStep } = chosen
    await chosen.member.state.publish(record({ outerStep, loss: random.uniform() }))
  } else if (dice < 50) {
    const admin = lives.get(ADMINS[random.integer(ADMINS.length)]!)!
    const value = random.integer(4) === 0 ? undefined : random.integer(1000)
    await admin.member.state.writeBoard(`key${random.integer(5)}`, value)
  } else if (dice < 65) {
    const other = pick()
    if (other !== chosen) network.connect(chosen.member.peer, other.member.peer)
  } else if (dice < 80) {
    network.disconnect(chosen.member.peer, pick().member.peer)
  } else if (dice < 82) {
    await restart(swarm, NAMES[random.integer(NAMES.length)]!, lives)
  } else {
    await clock.advance(random.integer(2_000))
  }
}

const viewOf = ({ state }: TestMember): unknown => ({
  members: state.members().map(({ peer, record: seen }) => [peer, seen.outerStep, seen.loss]),
  board: state.board(),
  equivocators: state.equivocators(),
})

describe('all replicas converge', () => {
  test.each(Array.from({ length: 5 }, (_, seed) => seed))('seed %i', async (seed) => {
    const random = seededRandom('convergence', seed)
    const swarm = start({
      seed: `convergence ${seed}`,
      admins: ADMINS,
      latencyMs: 200,
      loss: 0.15,
      duplication: 0.1,
    })
    const { network, clock } = swarm
    const lives = new Map<string, Life>()
    for (const name of NAMES) {
      lives.set(name, { member: await swarm.member(name), life: 0, outerStep: 0 })
    }
    const replayer = await joinReplayer(swarm, random)
    for (let turn = 0; turn < 250; turn++) {
      await step(swarm, lives, random)
      if (turn % 40 === 0) {
        for (const { member } of lives.values()) network.connect(replayer.peer, member.peer)
      }
      // It does not wait for answers that may be lost.
      if (turn % 5 === 0) replayer.act().catch(() => {})
    }

    network.setLoss(0)
    const members = [...lives.values()].map(({ member }) => member)
    for (const { outerStep, member } of lives.values()) {
      await member.state.publish(record({ outerStep: outerStep + 1000 }))
    }
    // A ring: what two know must pass the others.
    for (const [index, { peer }] of members.entries()) {
      for (const other of members) network.disconnect(peer, other.peer)
      network.disconnect(peer, replayer.peer)
      const next = members[(index + 1) % members.length]!
      await clock.advance(0)
      network.connect(peer, next.peer)
    }
    for (const [index, { peer }] of members.entries()) {
      network.connect(peer, members[(index + 1) % members.length]!.peer)
    }
    await clock.advance(40_000)

    const views = members.map(viewOf)
    for (const view of views) expect(view).toEqual(views[0])
    expect(views[0]).toMatchObject({ equivocators: [] })
    for (const { member, outerStep } of lives.values()) {
      for (const { state } of members) {
        const seen = state.members().find(({ peer }) => peer === member.peer)
        expect(seen?.record.outerStep).toBe(outerStep + 1000)
      }
    }
    // What is kept on disk is bounded: an epoch, and a chain per admin.
    for (const { records } of members) {
      const stored = await records.list('')
      expect(stored.length).toBeLessThanOrEqual(1 + ADMINS.length)
      for (const [, value] of stored) {
        expect(value.length).toBeLessThanOrEqual(2 * LIMITS.envelopeBytes + 1024)
      }
    }
    // The replayer was heard, and dropped.
    const rejected = members.map(({ metrics }) => metrics.read('envelopes_rejected_total', 'stale'))
    expect(rejected.reduce((sum, count) => sum + count, 0)).toBeGreaterThan(0)
  })
})
