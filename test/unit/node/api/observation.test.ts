import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { z } from 'zod'
import { ROUTES } from '../../../../node/api/routes.ts'
import { readEventLogText } from '../../../../node/event-log-file.ts'
import { METRICS, labelOf } from '../../../../src/metrics.ts'
import { runViewSchema } from '../../../../src/run/view.ts'
import { isFinished, realText, tinySpec, waitForRun } from '../../../swarm/swarm.ts'
import { bytesOf, startApis, TOKEN, type LocalApis } from './local-api.ts'

let local: LocalApis
let run: string

beforeAll(async () => {
  local = await startApis(2, 'observation')
  const [first, second] = local.apis
  const data = join(local.folder, 'text.txt')
  writeFileSync(data, await realText())
  const spec = tinySpec({ data, name: 'seen', limits: { minPeers: 2, checkpointEvery: 2 } })
  run = (await first!.client.call(ROUTES.createRun, { spec })).id
  const { link } = await first!.client.call(ROUTES.invite, { run })
  await second!.client.call(ROUTES.joinRun, { run: link })
  for (const { node } of local.apis) await waitForRun(node, run, isFinished)
})
afterAll(() => local.close())

async function metricsText(): Promise<string> {
  const { content } = await local.api.client.download(ROUTES.metrics, {})
  return (await bytesOf(content)).toString()
}

/** A line of the text format: name, labels, value. */
const SAMPLE = /^[a-z_]+(\{([a-z_]+="(\\.|[^"\\])*")(,[a-z_]+="(\\.|[^"\\])*")*\})? [-+.\de]+$/

describe('metrics', () => {
  test('are of the text format: every family has help, a type, and samples of its own', async () => {
    const families = (await metricsText()).split(/^# HELP /m).slice(1)
    const names = new Set<string>()
    for (const family of families) {
      const [help = '', type = '', ...samples] = family.trimEnd().split('\n')
      const name = help.split(' ')[0] ?? ''
      expect(names).not.toContain(name)
      names.add(name)
      expect(help.length).toBeGreaterThan(name.length + 5)
      expect(type).toMatch(new RegExp(`^# TYPE ${name} (counter|gauge)$`))
      expect(samples.length).toBeGreaterThan(0)
      for (const sample of samples) {
        expect(sample).toMatch(SAMPLE)
        expect(sample.split(/[ {]/)[0]).toBe(name)
      }
      expect(new Set(samples.map((sample) => sample.slice(0, sample.lastIndexOf(' ')))).size).toBe(
        samples.length,
      )
      if (type.endsWith('counter')) expect(name).toMatch(/_total$/)
    }
  })

  test('have every counter, and nothing that grows with the swarm', async () => {
    const text = await metricsText()
    for (const [name, help] of Object.entries(METRICS)) {
      const isCounted = text.includes(`# TYPE shoal_${name} counter\n`)
      // Of one with a label there is nothing to tell before it counts.
      const label = labelOf(help)
      expect({ name, known: isCounted || label !== undefined }).toEqual({ name, known: true })
    }
    expect(text).toContain('shoal_rounds_total{outcome="averaged"} ')
    for (const { node } of local.apis) expect(text).not.toContain(node.peerId)
  })

  test('have every figure of a run', async () => {
    const text = await metricsText()
    const view = await local.api.client.call(ROUTES.showRun, { run })
    const label = `{run="${run}"}`
    const value = (name: string, labels = label): number =>
      Number(text.split(`\nshoal_${name}${labels} `)[1]?.split('\n')[0])
    const figures = {
      run_parameters: 'parameters',
      run_outer_steps: 'outerSteps',
      run_inner_steps: 'innerSteps',
      run_outer_step: 'outerStep',
      run_inner_step: 'innerStep',
      run_tokens_total: 'tokens',
      run_loss: 'loss',
      run_loss_start: 'lossStart',
      run_validation_loss: 'validationLoss',
      run_tokens_per_second: 'tokensPerSecond',
      run_consensus_distance: 'consensusDistance',
      run_wait_share: 'waitShare',
      run_sent_bytes_total: 'bytesSent',
      run_received_bytes_total: 'bytesReceived',
    } as const
    const numeric = Object.entries(runViewSchema.shape).flatMap(([name, schema]) =>
      z.safeParse(schema, 1).success ? [name] : [],
    )
    expect(numeric.toSorted()).toEqual(Object.values(figures).toSorted())
    for (const [name, field] of Object.entries(figures)) {
      expect({ name, figure: value(name) }).toEqual({ name, figure: view[field] })
    }
    expect(value('run_rounds_total', `{run="${run}",outcome="averaged"}`)).toBe(
      view.rounds.averaged,
    )
    expect(value('run_checkpoints')).toBe(view.checkpoints.length)
    expect(value('run_members', `{run="${run}",status="finished"}`)).toBe(2)
    expect(value('run_status', `{run="${run}",status="finished"}`)).toBe(1)
    expect(text).toContain(`{run="${run}",name="seen",rule="gossip-diloco"} 1\n`)
    expect(value('links', '{path="direct",transport="memory"}')).toBe(1)
  })

  test('are plain text, and need the token', async () => {
    const url = `${local.api.client.url}/metrics`
    expect((await fetch(url)).status).toBe(401)
    const answer = await fetch(url, { headers: { authorization: `Bearer ${TOKEN}` } })
    expect(answer.headers.get('content-type')).toBe('text/plain; version=0.0.4; charset=utf-8')
  })
})

describe('the history of a run', () => {
  test('has every outer step with what came of it', async () => {
    const history = await local.api.client.call(ROUTES.history, { run })
    const view = await local.api.client.call(ROUTES.showRun, { run })
    expect(history.steps.map(({ outerStep }) => outerStep)).toEqual([1, 2, 3, 4, 5, 6])
    expect(history.steps.at(-1)).toMatchObject({ loss: view.loss, tokens: view.tokens })
    expect(history.steps.filter(({ outcome }) => outcome === 'averaged')).toHaveLength(
      view.rounds.averaged,
    )
    expect(history.validations.map(({ outerStep }) => outerStep)).toContain(6)
    expect(history.members).toMatchObject([{ peer: local.apis[1]?.node.peerId, change: 'joined' }])
    const { newest } = history
    expect(await local.api.client.call(ROUTES.history, { run, after: newest })).toEqual({
      newest: 0,
      steps: [],
      validations: [],
      members: [],
    })
    const thinned = await local.api.client.call(ROUTES.history, { run, points: 2 })
    expect(thinned.steps.map(({ outerStep }) => outerStep)).toEqual([3, 6])
  })

  test('is there as an event log of one object per line', async () => {
    const { content } = await local.api.client.download(ROUTES.runEvents, { run })
    const log = await readEventLogText([await bytesOf(content)])
    expect(log.header).toMatchObject({ format: 'shoal-events', version: 1, run, outerSteps: 6 })
    expect(log.events.map(({ number }) => number)).toEqual(log.events.map((_, index) => index + 1))
    const types = new Set(log.events.map(({ event }) => event.type))
    expect(types).toEqual(
      new Set(['run_status', 'outer_step', 'validation', 'checkpoint', 'member']),
    )
    expect(log.events.at(-1)?.event).toMatchObject({ status: 'finished' })
  })

  test('is unknown of a run that is not here, and gone with the run that is left', async () => {
    const { client } = local.apis[1]!
    await client.call(ROUTES.leaveRun, { run })
    await expect(client.call(ROUTES.history, { run })).rejects.toMatchObject({
      code: 'run_unknown',
    })
    await expect(client.download(ROUTES.runEvents, { run })).rejects.toMatchObject({
      code: 'run_unknown',
    })
  })
})
