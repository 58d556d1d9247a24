/** Nodes in one process, each with its local API on loopback. */
import { mkdtempSync, rmSync } from 'node:fs'
import { request as httpRequest } from 'node:http'
import type { IncomingHttpHeaders } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createApiClient } from '../../../../node/api/client.ts'
import type { ApiClient } from '../../../../node/api/client.ts'
import { createApiServer } from '../../../../node/api/server.ts'
import { systemClock, type Clock } from '../../../../src/clock.ts'
import { silentLogger } from '../../../../src/log.ts'
import type { ShoalNode } from '../../../../src/node.ts'
import { writeSafetensors } from '../../../../src/tensor/safetensors.ts'
import { createSchema, type Schema } from '../../../../src/tensor/schema.ts'
import { createSwarm } from '../../../swarm/swarm.ts'

export const TOKEN = 'a'.repeat(64)

export interface Api {
  node: ShoalNode
  client: ApiClient
}

export interface LocalApis {
  apis: Api[]
  /** Of the first. */
  api: Api
  /** Empty, and gone in the end. */
  folder: string
  close(): Promise<void>
}

export async function startApis(
  peers: number,
  seed: string,
  clock: Clock = systemClock,
): Promise<LocalApis> {
  const folder = mkdtempSync(join(tmpdir(), 'shoal-api-'))
  const swarm = await createSwarm(peers, seed)
  const servers = await Promise.all(
    swarm.nodes.map((node) =>
      createApiServer({
        node,
        token: TOKEN,
        port: 0,
        dataDir: folder,
        clock,
        logger: silentLogger,
        shutdown: () => {},
      }),
    ),
  )
  const apis = swarm.nodes.map((node, index) => ({
    node,
    client: createApiClient({ url: servers[index]?.url ?? '', token: TOKEN, clock }),
  }))
  const [api] = apis
  if (api === undefined) throw new Error('no node')
  return {
    apis,
    api,
    folder,
    async close() {
      await Promise.all(servers.map((server) => server.close()))
      await swarm.stop()
      rmSync(folder, { recursive: true, force: true })
    },
  }
}

export async function bytesOf(
  content: AsyncIterable<Uint8Array> | undefined,
): Promise<Buffer<ArrayBuffer>> {
  const pieces: Uint8Array[] = []
  for await (const piece of content ?? []) pieces.push(piece)
  return Buffer.concat(pieces)
}

/** A tiny model that nobody but its script knows. */
export const lineSchema = createSchema([
  { name: 'slope', shape: [2, 2], decay: true },
  { name: 'offset', shape: [2], decay: false },
])

export async function fileOf(schema: Schema, values: readonly number[]): Promise<Uint8Array> {
  const { content } = writeSafetensors(schema, Float32Array.from(values))
  return new Uint8Array(await bytesOf(content))
}

export interface RawCall {
  method?: string
  path?: string
  headers?: Readonly<Record<string, string>>
  body?: string
}

export interface RawAnswer {
  status: number
  headers: IncomingHttpHeaders
  /** JSON as its value, else the text. */
  body: unknown
}

/** A request as any program may send it: `fetch` would not let us lie about the Host. */
export async function rawCall(url: string, call: RawCall): Promise<RawAnswer> {
  const { method = 'GET', path = '/v1/node', headers = {}, body } = call
  const { hostname, port } = new URL(url)
  return await new Promise((resolve, reject) => {
    const request = httpRequest({ hostname, port, method, path, headers }, (response) => {
      let text = ''
      response.on('data', (piece) => (text += String(piece)))
      response.on('end', () => {
        const isJson = (response.headers['content-type'] ?? '').endsWith('json')
        const status = response.statusCode ?? 0
        const value: unknown = isJson && text !== '' ? JSON.parse(text) : text
        resolve({ status, headers: response.headers, body: value })
      })
    })
    request.on('error', reject)
    request.end(body)
  })
}
