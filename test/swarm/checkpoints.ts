/** The checkpoint of every step, by node: equal parameters make equal checkpoints. For runs with `checkpointEvery: 1`. */
import type { ShoalNode } from '../../src/node.ts'

export type CheckpointsByStep = Map<number, Map<string, string>>

export function recordCheckpoints(nodes: readonly ShoalNode[]): CheckpointsByStep {
  const steps: CheckpointsByStep = new Map()
  for (const node of nodes) {
    node.onEvent((event) => {
      if (event.type !== 'checkpoint') return
      const { outerStep, cid } = event.checkpoint
      const byNode = steps.get(outerStep) ?? new Map<string, string>()
      steps.set(outerStep, byNode.set(node.peerId, cid))
    })
  }
  return steps
}

export function areEqual(cids: ReadonlyMap<string, string> | undefined): boolean {
  return new Set(cids?.values()).size === 1
}
