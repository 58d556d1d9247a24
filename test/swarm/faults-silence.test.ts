/** Most of a swarm falls silent at once, as when a provider fails: the rest go on (MoDeST, arXiv 2302.13837). */
import { expect, test } from 'vitest'
import type { ShoalNode } from '../../src/node.ts'
import type { RunView } from '../../src/run/view.ts'
import { createLinks } from './links.ts'
import { createSwarm, realText, tinySpec, waitForRun } from './swarm.ts'

const text = await realText()

/** 20 nodes in one process take their time on a machine that has other things to do. */
const PATIENCE_MS = 180_000

test(
  'with 16 of 20 peers gone silent at once the others go on, and their loss goes on falling',
  async () => {
    const links = createLinks()
    const swarm = await createSwarm(20, 'silence', { links })
    try {
      const { nodes } = swarm
      const [first, ...others] = nodes
      if (first === undefined) throw new Error('a swarm has nodes')
      const { id } = await first.createRun(
        tinySpec({
          outerSteps: 10_000,
          innerSteps: 4,
          averaging: { groupSize: 4 },
          limits: { minPeers: 20, roundTimeoutMs: 3_000, checkpointEvery: 2 },
        }),
        text,
      )
      await Promise.all(others.map((node) => node.joinRun(id)))
      const left = nodes.slice(0, 4)
      await reach(left, id, 2)
      const before = lossOf(left, id)
      links.silence(nodes.slice(4).map(({ peerId }) => peerId))
      const at = Math.max(...left.map((node) => node.run(id).outerStep))
      await reach(left, id, at + 12)
      expect(lossOf(left, id)).toBeLessThan(before - 0.1)
      // They have found one another again.
      const alive = left.map(({ peerId }) => peerId)
      const isTogether = (node: ShoalNode): Promise<unknown> =>
        waitForRun(node, id, ({ round }) => round?.outcome === 'averaged')
      await Promise.all(left.map(isTogether))
      for (const node of left)
        expect(alive).toEqual(expect.arrayContaining(node.run(id).round?.partners ?? []))
    } finally {
      await swarm.stop()
    }
  },
  PATIENCE_MS,
)

async function reach(nodes: readonly ShoalNode[], id: string, step: number): Promise<void> {
  const isThere = ({ outerStep }: RunView): boolean => outerStep >= step
  await Promise.all(nodes.map((node) => waitForRun(node, id, isThere, PATIENCE_MS)))
}

/** Mean validation loss of their newest checkpoints. */
function lossOf(nodes: readonly ShoalNode[], id: string): number {
  const losses = nodes.map((node) => node.run(id).validationLoss ?? Number.NaN)
  return losses.reduce((sum, loss) => sum + loss, 0) / losses.length
}
