/** Folders that a run starts from, with what people and programs leave in them. */
import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { readModelFiles } from '../../../node/model-files.ts'

function folderWith(files: Readonly<Record<string, string>>): string {
  const folder = mkdtempSync(join(tmpdir(), 'shoal-model-'))
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }))
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text)
  return folder
}

async function tensorsOf(path: string): Promise<string> {
  const pieces: Uint8Array[] = []
  for await (const piece of (await readModelFiles(path)).tensors) pieces.push(piece)
  return Buffer.concat(pieces).toString()
}

test('a folder, or a file alone', async () => {
  const folder = folderWith({ 'config.json': '{}', 'model.safetensors': 'bytes' })
  const files = await readModelFiles(folder)
  expect([files.config, files.tokenizer]).toEqual(['{}', undefined])
  expect(await tensorsOf(folder)).toBe('bytes')
  const alone = await readModelFiles(join(folder, 'model.safetensors'))
  expect([alone.config, alone.tokenizer]).toEqual([undefined, undefined])
})

test('what is not there is named', async () => {
  const folder = folderWith({ 'config.json': '{}' })
  for (const path of [folder, join(folder, 'absent')]) {
    await expect(tensorsOf(path)).rejects.toMatchObject({
      code: 'folder_invalid',
      message: expect.stringContaining(folder),
    })
  }
})

test.skipIf(process.platform === 'win32')('no pipe, device or folder is read', async () => {
  const pipe = folderWith({ 'config.json': '{}' })
  execFileSync('mkfifo', [join(pipe, 'model.safetensors')])
  const device = folderWith({ 'config.json': '{}' })
  symlinkSync('/dev/zero', join(device, 'model.safetensors'))
  const nested = folderWith({ 'config.json': '{}' })
  mkdirSync(join(nested, 'model.safetensors'))
  for (const folder of [pipe, device, nested]) {
    await expect(tensorsOf(folder)).rejects.toMatchObject({
      code: 'folder_invalid',
      message: expect.stringContaining('it is no file'),
    })
  }
  const odd = folderWith({ 'model.safetensors': '' })
  symlinkSync('/dev/zero', join(odd, 'config.json'))
  await expect(readModelFiles(odd)).rejects.toMatchObject({ code: 'folder_invalid' })
})
