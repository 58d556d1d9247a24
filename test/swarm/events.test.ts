/** Events go to whoever asks and to the logs alike. */
import { expect, test } from 'vitest'
import type { Logger } from '../../src/log.ts'
import { silentLogger } from '../../src/log.ts'
import type { RunEvent } from '../../src/run/view.ts'
import { createSwarm, isFinished, realText, tinySpec, waitForRun } from './swarm.ts'

test('log, listeners and event log are told the same events', async () => {
  const entries: [string, unknown][] = []
  const logger: Logger = {
    ...silentLogger,
    debug: (event, fields) => entries.push([event, fields]),
  }
  const swarm = await createSwarm(1, 'events', { logger: () => logger })
  const [node] = swarm.nodes
  if (node === undefined) throw new Error('no node')
  const heard: RunEvent[] = []
  node.onEvent((event) => heard.push(event))
  const spec = tinySpec({ outerSteps: 3, limits: { startTimeoutMs: 0 } })
  const { id } = await node.createRun(spec, await realText())
  await waitForRun(node, id, isFinished)

  const kept: RunEvent[] = []
  for await (const { event } of node.loggedEvents(id)) kept.push(event)
  await swarm.stop()
  expect(kept).toEqual(heard.filter(({ type }) => type !== 'inner_progress'))
  const types = new Set(heard.map(({ type }) => type))
  expect([...types]).toEqual(expect.arrayContaining(['run_status', 'outer_step']))
  const logged = entries.filter(([event]) => heard.some(({ type }) => type === event))
  expect(logged).toEqual(heard.map(({ type, ...fields }) => [type, fields]))
})
