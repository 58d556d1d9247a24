import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { writeCheckpointFolder } from '../../../../node/api/checkpoint-folder.ts'
import type { CheckpointFile } from '../../../../src/node.ts'

let parent: string
beforeEach(() => {
  parent = mkdtempSync(join(tmpdir(), 'shoal-export-'))
})
afterEach(() => rmSync(parent, { recursive: true, force: true }))

function checkpoint(text: string, fault?: Error): CheckpointFile[] {
  const file = (name: string, pieces: string[]): CheckpointFile => ({
    name,
    bytes: pieces.join('').length,
    content: (async function* () {
      for (const piece of pieces) yield new TextEncoder().encode(piece)
      if (fault !== undefined) throw fault
    })(),
  })
  return [file('config.json', [text]), file('model.safetensors', [text, text])]
}

describe('a checkpoint folder', () => {
  test('is written whole, and its parents too', async () => {
    const folder = join(parent, 'a', 'b')
    const files = await writeCheckpointFolder(folder, checkpoint('one'))
    expect(files).toEqual([
      { name: 'config.json', bytes: 3 },
      { name: 'model.safetensors', bytes: 6 },
    ])
    expect(readFileSync(join(folder, 'model.safetensors'), 'utf8')).toBe('oneone')
    expect(readdirSync(join(parent, 'a'))).toEqual(['b'])
  })

  test('replaces an empty folder and an earlier export', async () => {
    const folder = join(parent, 'model')
    mkdirSync(folder)
    await writeCheckpointFolder(folder, checkpoint('one'))
    await writeCheckpointFolder(folder, checkpoint('two'))
    expect(readFileSync(join(folder, 'config.json'), 'utf8')).toBe('two')
    expect(readdirSync(parent)).toEqual(['model'])
  })

  test('leaves a folder alone that is no earlier export', async () => {
    const folder = join(parent, 'thesis')
    mkdirSync(folder)
    writeFileSync(join(folder, 'chapter-1.txt'), 'years of work')
    await expect(writeCheckpointFolder(folder, checkpoint('x'))).rejects.toMatchObject({
      code: 'folder_invalid',
      message: `${folder} is not empty and no earlier export: name a new or empty folder`,
    })
    await writeCheckpointFolder(join(parent, 'model'), checkpoint('x'))
    writeFileSync(join(parent, 'model', 'notes.txt'), 'mine')
    await expect(
      writeCheckpointFolder(join(parent, 'model'), checkpoint('y')),
    ).rejects.toMatchObject({ code: 'folder_invalid' })
    expect(readdirSync(folder)).toEqual(['chapter-1.txt'])
  })

  test('refuses a file and a relative path', async () => {
    const file = join(parent, 'file')
    writeFileSync(file, 'x')
    await expect(writeCheckpointFolder(file, checkpoint('x'))).rejects.toThrow('is a file')
    await expect(writeCheckpointFolder('model', checkpoint('x'))).rejects.toThrow('relative path')
    expect(existsSync('model')).toBe(false)
  })

  test('is not there when writing fails, and the earlier export still is', async () => {
    const folder = join(parent, 'model')
    const broken = () => writeCheckpointFolder(folder, checkpoint('bad', new Error('disk on fire')))
    await expect(broken()).rejects.toMatchObject({ code: 'storage_failed' })
    expect(readdirSync(parent)).toEqual([])
    await writeCheckpointFolder(folder, checkpoint('good'))
    await expect(broken()).rejects.toThrow('disk on fire')
    expect(readFileSync(join(folder, 'config.json'), 'utf8')).toBe('good')
    expect(readdirSync(parent)).toEqual(['model'])
  })

  test('stops when aborted', async () => {
    const signal = AbortSignal.abort()
    const writing = writeCheckpointFolder(join(parent, 'model'), checkpoint('x'), signal)
    await expect(writing).rejects.toMatchObject({ code: 'aborted' })
    expect(readdirSync(parent)).toEqual([])
  })
})
