import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { ShoalNode } from '../../src/node.ts'
import type { Average, AverageInput } from '../../src/run/averaging-groups.ts'
import { createSwarm, type Swarm } from './swarm.ts'

let swarm: Swarm
let nodes: ShoalNode[]
beforeAll(async () => {
  swarm = await createSwarm(4, 'averages')
  nodes = swarm.nodes
})
afterAll(() => swarm.stop())

const signal = new AbortController().signal
let names = 0
const freshGroup = (): string => `group-${names++}`

type Given = Partial<AverageInput> & Pick<AverageInput, 'group'>

/** One node gives a row. */
function give(index: number, row: readonly number[], input: Given): Promise<Average> {
  const node = nodes[index]
  if (node === undefined) throw new Error('more rows than nodes')
  return node.averaging.average(
    {
      round: 0,
      schemaHash: 'a'.repeat(64),
      parameters: Float32Array.from(row),
      weight: 1,
      minPeers: 2,
      waitMs: 20_000,
      codec: 'fp32',
      ...input,
    },
    signal,
  )
}

/** Each node gives its row. */
function giveAll(rows: readonly number[][], input: Given): Promise<Average>[] {
  return rows.map((row, index) => give(index, row, { minPeers: rows.length, ...input }))
}

describe('an averaging group', () => {
  test('gives everyone the mean of all, round after round', async () => {
    const group = freshGroup()
    const peers = nodes
      .slice(0, 3)
      .map(({ peerId }) => peerId)
      .sort()
    for (const round of [0, 1, 5]) {
      const rows = [
        [1, 2],
        [3, 4],
        [8, round],
      ]
      const results = await Promise.all(giveAll(rows, { group, round }))
      for (const result of results) {
        expect(result.peers).toEqual(peers)
        expect([...result.parameters]).toEqual([4, Math.fround((6 + round) / 3)])
      }
    }
  })

  test('may be cut into smaller ones, others in every round', async () => {
    const group = freshGroup()
    const rows = [[1], [2], [4], [8]]
    const pairings = new Set<string>()
    for (const round of [0, 1, 2, 3, 4, 5]) {
      const results = await Promise.all(giveAll(rows, { group, round, groupSize: 2 }))
      for (const { peers, parameters } of results) {
        const given = peers.map(
          (peer) => rows[nodes.findIndex(({ peerId }) => peerId === peer)]?.[0] ?? NaN,
        )
        expect(given).toHaveLength(2)
        expect([...parameters]).toEqual([given.reduce((sum, value) => sum + value, 0) / 2])
      }
      expect(results.flatMap(({ peers }) => peers)).toHaveLength(8)
      pairings.add(results[0]?.peers.join() ?? '')
    }
    expect(pairings.size).toBeGreaterThan(1)
  })

  test('weighs what is given', async () => {
    const group = freshGroup()
    const [one] = giveAll([[0]], { group, weight: 3, minPeers: 2 })
    const two = nodes[1]?.averaging.average(
      {
        group,
        round: 0,
        schemaHash: 'a'.repeat(64),
        parameters: Float32Array.of(4),
        weight: 1,
        minPeers: 2,
        waitMs: 20_000,
        codec: 'fp32',
      },
      signal,
    )
    expect((await one)?.parameters).toEqual(Float32Array.of(1))
    expect((await two)?.parameters).toEqual(Float32Array.of(1))
  })

  test('a round that is repeated gets its result again, an older one is refused', async () => {
    const group = freshGroup()
    const [first] = await Promise.all(giveAll([[2], [4]], { group, round: 3 }))
    const [again] = giveAll([[100]], { group, round: 3 })
    expect(await again).toEqual(first)
    const [other] = giveAll([[1, 2]], { group, round: 3, schemaHash: 'b'.repeat(64) })
    await expect(other).rejects.toMatchObject({ code: 'schema_mismatch' })
    const [older] = giveAll([[1]], { group, round: 2 })
    await expect(older).rejects.toMatchObject({ code: 'conflict', details: { round: 3 } })
  })

  test('fails when too few come, and may be tried again', async () => {
    const group = freshGroup()
    const [alone] = giveAll([[1]], { group, minPeers: 2, waitMs: 100 })
    await expect(alone).rejects.toMatchObject({ code: 'timeout', details: { peers: 1 } })
    const together = await Promise.all(giveAll([[1], [3]], { group }))
    expect(together.map(({ parameters }) => parameters[0])).toEqual([2, 2])
  })

  test('averages only tensors of one layout, in one codec', async () => {
    const group = freshGroup()
    const odd = giveAll([[1], [2]], { group, waitMs: 5_000 }).slice(0, 1)
    const other = nodes[2]?.averaging.average(
      {
        group,
        round: 0,
        schemaHash: 'b'.repeat(64),
        parameters: Float32Array.of(50),
        weight: 1,
        minPeers: 1,
        waitMs: 0,
        codec: 'fp32',
      },
      signal,
    )
    expect([...((await odd[0])?.parameters ?? [])]).toEqual([1.5])
    expect([...((await other)?.parameters ?? [])]).toEqual([50])
  })

  test('says who brought tensors of another layout, where they were needed', async () => {
    const group = freshGroup()
    const other = give(1, [1, 2], { group, schemaHash: 'b'.repeat(64) })
    const refused = { code: 'timeout', message: expect.stringMatching(/ in time: .*: schema \(/) }
    const outcomes = await Promise.allSettled([give(0, [1], { group }), other])
    for (const outcome of outcomes) expect(outcome).toMatchObject({ reason: refused })
  })

  test('sends int8 where that is enough', async () => {
    const group = freshGroup()
    const row = Array.from({ length: 1000 }, (_unused, index) => Math.sin(index))
    const [result] = await Promise.all(giveAll([row, row], { group, codec: 'int8-128' }))
    const error = Math.max(...row.map((value, i) => Math.abs(value - (result?.parameters[i] ?? 9))))
    expect(error).toBeGreaterThan(0)
    expect(error).toBeLessThan(0.005)
  })

  test('has limits', async () => {
    const [node] = nodes
    if (node === undefined) throw new Error('no node')
    const input = {
      round: 0,
      schemaHash: 'a'.repeat(64),
      parameters: Float32Array.of(1),
      weight: 1,
      minPeers: 1,
      waitMs: 0,
      codec: 'fp32',
    } as const
    const outcomes = await Promise.allSettled(
      Array.from({ length: 20 }, (_, index) =>
        node.averaging.average({ ...input, group: `many-${index}` }, signal),
      ),
    )
    const refused = outcomes.filter(({ status }) => status === 'rejected')
    expect(refused.length).toBeGreaterThan(0)
    expect(refused[0]).toMatchObject({ reason: { code: 'limit_exceeded' } })
  })
})
