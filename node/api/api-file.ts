/** `api.json` in the data folder: where the daemon's local API is. There while the daemon is up. */
import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { z } from 'zod'

const apiFileSchema = z.object({
  version: z.literal(1),
  /** Loopback only: the token is sent nowhere else, whatever the file says. */
  url: z.string().regex(/^http:\/\/127\.0\.0\.1:\d{1,5}$/),
  pid: z.int().positive(),
})
export type ApiFile = z.infer<typeof apiFileSchema>

const fileName = (dataDir: string): string => join(dataDir, 'api.json')

export function writeApiFile(dataDir: string, file: { url: string; pid: number }): void {
  const path = fileName(dataDir)
  const content: ApiFile = { version: 1, ...file }
  writeFileSync(`${path}.new`, `${JSON.stringify(content)}\n`, { mode: 0o600 })
  renameSync(`${path}.new`, path)
}

/** Removes this process's file, not that of another daemon. Synchronous: it works in the last moments of a process too. */
export function removeApiFile(dataDir: string): void {
  if (readApiFile(dataDir)?.pid === process.pid) rmSync(fileName(dataDir), { force: true })
}

/** Undefined when there is none, or none that can be understood. */
export function readApiFile(dataDir: string): ApiFile | undefined {
  try {
    return apiFileSchema.parse(JSON.parse(readFileSync(fileName(dataDir), 'utf8')))
  } catch {
    return undefined
  }
}
