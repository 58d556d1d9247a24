/** Reads a run spec (TOML, or JSON by its extension) and resolves its data path. */
import { readFile, stat } from 'node:fs/promises'
import { dirname, resolve } from 'node:path'
import { ShoalError, messageOf } from '../../src/errors.ts'
import { LIMITS } from '../../src/limits.ts'
import { runSpecSchema } from '../../src/run/manifest.ts'
import type { RunSpec } from '../../src/run/manifest.ts'
import { parseTomlText } from '../config.ts'
import { isCid } from '../model-files.ts'
import { parseInput } from '../validation.ts'

/**
 * The spec at `path` with absolute paths: `data` (relative to `cwd`) when given, else the spec's own (relative to the
 * spec), as is what it starts `from`, unless that is a CID. Throws `spec_invalid` naming file and field.
 */
export async function readSpec(
  path: string,
  options: { cwd: string; data?: string | undefined },
): Promise<RunSpec> {
  const file = resolve(options.cwd, path)
  const text = await readSpecText(file, path)
  const value = file.endsWith('.json')
    ? parseJson(text, path)
    : parseTomlText(text, path, 'spec_invalid')
  const data = options.data === undefined ? undefined : { data: resolve(options.cwd, options.data) }
  const spec = parseInput(runSpecSchema, withData(value, data), 'spec_invalid', path)
  const absolute = (named: string): string => resolve(dirname(file), named)
  return {
    ...spec,
    ...(spec.data !== undefined && { data: absolute(spec.data) }),
    ...(spec.from !== undefined && { from: isCid(spec.from) ? spec.from : absolute(spec.from) }),
  }
}

function withData(value: unknown, data: { data: string } | undefined): unknown {
  const isObject = typeof value === 'object' && value !== null && !Array.isArray(value)
  return data !== undefined && isObject ? { ...value, ...data } : value
}

async function readSpecText(file: string, path: string): Promise<string> {
  try {
    const { size } = await stat(file)
    if (size > LIMITS.apiBodyBytes / 2) {
      throw new ShoalError('spec_invalid', `${path} is too large for a run spec (${size} bytes)`)
    }
    return await readFile(file, 'utf8')
  } catch (cause) {
    if (cause instanceof ShoalError) throw cause
    const absent = cause instanceof Error && 'code' in cause && cause.code === 'ENOENT'
    const why = absent ? 'does not exist: check the path' : `cannot be read: ${messageOf(cause)}`
    throw new ShoalError('spec_invalid', `run spec ${path} ${why}`, { cause })
  }
}

function parseJson(text: string, path: string): unknown {
  try {
    return JSON.parse(text)
  } catch (cause) {
    const why = messageOf(cause).replaceAll(/\s*\n\s*/g, ' ')
    throw new ShoalError('spec_invalid', `${path}: not valid JSON (${why})`, { cause })
  }
}
