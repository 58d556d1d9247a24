/** The local API as a shell script uses it: curl against real daemons, line by line as the README shows it. */
import { execFile } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { z } from 'zod'
import { readSafetensors, writeSafetensors } from '../../src/tensor/safetensors.ts'
import { createSchema } from '../../src/tensor/schema.ts'
import { createWorkplace } from './daemon-process.ts'
import type { Daemon, Workplace } from './daemon-process.ts'

const LOGIN = `
DATA=$SHOAL_DATA_DIR
URL=$(sed 's/.*"url":"\\([^"]*\\)".*/\\1/' "$DATA/api.json")
api() { printf 'Authorization: Bearer %s\\n' "$(cat "$DATA/api-token")" | curl -H @- "$@"; }
JSON='Content-Type: application/json'
BYTES='Content-Type: application/octet-stream'
`
const schema = createSchema([
  { name: 'slope', shape: [2, 2], decay: true },
  { name: 'offset', shape: [2], decay: false },
])

let place: Workplace
let first: Daemon
let second: Daemon

beforeAll(async () => {
  place = createWorkplace()
  first = await place.daemon('first')
  second = await place.daemon('second', '--bootstrap', first.ready.addresses[0] ?? '')
  await save('zeros.safetensors', [0, 0, 0, 0, 0, 0])
  await save('ones.safetensors', [1, 1, 1, 1, 1, 1])
  await save('threes.safetensors', [3, 3, 3, 3, 3, 3])
})
afterAll(() => place.close())

async function save(name: string, values: readonly number[]): Promise<void> {
  const pieces: Uint8Array[] = []
  for await (const piece of writeSafetensors(schema, Float32Array.from(values)).content) {
    pieces.push(piece)
  }
  writeFileSync(join(place.folder, name), Buffer.concat(pieces))
}

async function load(name: string): Promise<number[]> {
  return [...(await readSafetensors([readFileSync(join(place.folder, name))], schema))]
}

/** Runs lines of bash with the token of a daemon at hand; every command must succeed. */
async function bash(daemon: Daemon, script: string): Promise<string> {
  const { stdout } = await promisify(execFile)('bash', ['-euc', `${LOGIN}\n${script}`], {
    cwd: place.folder,
    env: { PATH: process.env['PATH'], SHOAL_DATA_DIR: daemon.dataDir },
    timeout: 60_000,
  })
  return stdout
}

async function json<T>(daemon: Daemon, script: string, schemaOf: z.ZodType<T>): Promise<T> {
  return schemaOf.parse(JSON.parse(await bash(daemon, script)))
}

const withId = z.object({ id: z.string() })

test('control: node, document, faults, events', async () => {
  const node = z.object({ peerId: z.string() })
  expect((await json(first, 'api -sf "$URL/v1/node"', node)).peerId).toBe(first.ready.peerId)
  const document = z.object({ openapi: z.string(), paths: z.record(z.string(), z.unknown()) })
  const { paths } = await json(first, 'api -sf "$URL/openapi.json"', document)
  expect(Object.keys(paths)).toContain('/v1/runs/{run}/outer-step')
  const problem = z.object({ code: z.string(), status: z.number() })
  expect(await json(first, 'curl -s "$URL/v1/node"', problem)).toMatchObject({
    code: 'unauthorized',
    status: 401,
  })
  const frames = await bash(
    first,
    `api -sN -m 60 "$URL/v1/events" > frames 2> /dev/null &
    until grep -qs '^id: ' frames; do sleep 0.1; done; cat frames`,
  )
  expect(frames).toMatch(/^retry: 1000\nid: /)
})

test('a model of its own is trained from the shell, by two of them', async () => {
  const spec = `{"spec": {
    "name": "curl", "model": {"kind": "external"}, "from": "'$PWD'/zeros.safetensors",
    "outerSteps": 1, "averaging": {"rule": "diloco", "momentum": 0, "learningRate": 1,
    "pseudoGradientCodec": "fp32"}, "limits": {"minPeers": 2}}}`
  const create = `api -sf -H "$JSON" -d '${spec}' "$URL/v1/runs"`
  const { id } = await json(first, create, withId)
  await second.json('run', 'join', id, '--trainer', 'outside')

  const get = `api -sf "$URL/v1/runs/${id}/parameters" -o outer.safetensors -D headers`
  for (const daemon of [first, second]) {
    await bash(daemon, get)
    expect(await load('outer.safetensors')).toEqual([0, 0, 0, 0, 0, 0])
    expect(readFileSync(join(place.folder, 'headers'), 'utf8')).toMatch(/^outer-step: 0\r$/m)
  }
  const progress = `api -sf -H "$JSON" -d '{"innerStep": 1, "loss": 4.2}' "$URL/v1/runs/${id}/progress"`
  const members = `api -sf "$URL/v1/runs/${id}/peers"`
  const records = z.object({
    peers: z.array(z.object({ record: z.object({ status: z.string() }) })),
  })
  for (const daemon of [first, second]) {
    expect(await json(daemon, progress, z.unknown())).toEqual({ enough: false })
    await expect
      .poll(async () => (await json(daemon, members, records)).peers.map((m) => m.record.status), {
        timeout: 45_000,
      })
      .toEqual(['training', 'training'])
  }
  const step = (file: string, to: string): string =>
    `api -sf -H "$BYTES" -H 'Outer-Step: 0' -H 'Tokens: 1' -H 'Loss: 4.1' -X POST -T ${file} "$URL/v1/runs/${id}/outer-step" -o ${to} -D headers-${to}`
  await Promise.all([
    bash(first, step('ones.safetensors', 'one')),
    bash(second, step('threes.safetensors', 'two')),
  ])
  for (const file of ['one', 'two']) {
    const headers = readFileSync(join(place.folder, `headers-${file}`), 'utf8')
    expect(headers).toMatch(/^outcome: averaged\r$/m)
    expect(headers).toMatch(/^next-outer-step: 1\r$/m)
    expect(await load(file)).toEqual([2, 2, 2, 2, 2, 2])
  }

  const metrics = await bash(first, 'api -sf "$URL/metrics"')
  expect(metrics).toContain(`\nshoal_run_outer_step{run="${id}"} 1\n`)
  const history = z.object({ steps: z.array(z.object({ outcome: z.string() })) })
  const course = `api -sf "$URL/v1/runs/${id}/history"`
  expect((await json(second, course, history)).steps).toMatchObject([{ outcome: 'averaged' }])
  const log = await bash(second, `api -sf "$URL/v1/runs/${id}/events" | head -1`)
  expect(JSON.parse(log)).toMatchObject({ format: 'shoal-events', run: id })
})

test('blobs and averages', async () => {
  const { cid } = await json(
    first,
    'api -sf -H "$BYTES" -T ones.safetensors "$URL/v1/blobs"',
    z.object({ cid: z.string() }),
  )
  await bash(second, `api -sf "$URL/v1/blobs/${cid}" -o copy.safetensors`)
  expect(await load('copy.safetensors')).toEqual([1, 1, 1, 1, 1, 1])
  await bash(first, `api -sf -X DELETE "$URL/v1/blobs/${cid}"`)

  const average = (file: string, to: string): string =>
    `api -sf -H "$BYTES" -H 'Round: 0' -X POST -T ${file} "$URL/v1/average/curl" -o ${to}`
  await Promise.all([
    bash(first, average('ones.safetensors', 'mean-1')),
    bash(second, average('threes.safetensors', 'mean-2')),
  ])
  expect(await load('mean-1')).toEqual([2, 2, 2, 2, 2, 2])
  expect(await load('mean-2')).toEqual([2, 2, 2, 2, 2, 2])
})
