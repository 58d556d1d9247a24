import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { readApiFile, removeApiFile, writeApiFile } from '../../../../node/api/api-file.ts'

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'shoal-api-file-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

const url = 'http://127.0.0.1:4011'

describe('api.json', () => {
  test('is read as it was written, and is for this user only', () => {
    writeApiFile(folder, { url, pid: process.pid })
    expect(readApiFile(folder)).toEqual({ version: 1, url, pid: process.pid })
    expect(statSync(join(folder, 'api.json')).mode & 0o077).toBe(0)
  })

  test('is removed by its own process only', () => {
    writeApiFile(folder, { url, pid: process.pid + 1 })
    removeApiFile(folder)
    expect(readFileSync(join(folder, 'api.json'), 'utf8')).toContain(String(process.pid + 1))
    writeApiFile(folder, { url, pid: process.pid })
    removeApiFile(folder)
    removeApiFile(folder)
    expect(readApiFile(folder)).toBeUndefined()
  })

  test.each([
    ['nothing', ''],
    ['another version', JSON.stringify({ version: 2, url, pid: 1 })],
    ['another machine', JSON.stringify({ version: 1, url: 'http://192.0.2.1:4011', pid: 1 })],
    ['a name', JSON.stringify({ version: 1, url: 'http://127.0.0.1.evil.example:1', pid: 1 })],
    ['user info', JSON.stringify({ version: 1, url: 'http://127.0.0.1:1@evil.example', pid: 1 })],
    ['a process group', JSON.stringify({ version: 1, url, pid: -1 })],
  ])('is not believed when it says %s', (_, text) => {
    writeFileSync(join(folder, 'api.json'), text)
    expect(readApiFile(folder)).toBeUndefined()
  })
})
