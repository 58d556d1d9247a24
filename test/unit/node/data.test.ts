import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { readTextFiles } from '../../../node/data.ts'
import { LIMITS } from '../../../src/limits.ts'

let folder: string
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'shoal-data-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

const ENOUGH = 'All work and no play. '.repeat(LIMITS.dataTokensMin / 20)

function file(name: string, content: string | Uint8Array = ENOUGH): string {
  const path = join(folder, name)
  mkdirSync(join(path, '..'), { recursive: true })
  writeFileSync(path, content)
  return path
}

const decode = (bytes: Uint8Array): string => new TextDecoder().decode(bytes)

describe('reading', () => {
  test('a file as it is', async () => {
    expect(decode(await readTextFiles(file('a.txt')))).toBe(ENOUGH)
  })

  test('a folder in the order of its paths, joined by newlines, without what is hidden or linked', async () => {
    file('b.txt', `bé${ENOUGH}\n`)
    file('a/2.md', 'second')
    file('a/1.txt', 'first')
    file('c', 'last')
    file('a/empty', '')
    file('.hidden', 'secret')
    file('.git/config', 'secret')
    const outside = mkdtempSync(join(tmpdir(), 'shoal-outside-'))
    writeFileSync(join(outside, 'passwords'), 'secret')
    symlinkSync(join(outside, 'passwords'), join(folder, 'd.txt'))
    symlinkSync(outside, join(folder, 'e'))
    const text = decode(await readTextFiles(folder))
    rmSync(outside, { recursive: true })
    expect(text).toBe(`first\nsecond\nbé${ENOUGH}\nlast`)
  })

  test('byte order marks are dropped from every file', async () => {
    file('a.txt', `\ufeff${ENOUGH}`)
    file('b.txt', '\ufeffend')
    expect(decode(await readTextFiles(folder))).toBe(`${ENOUGH}\nend`)
  })

  test('characters are counted, not bytes', async () => {
    const path = file('a.txt', 'é'.repeat(LIMITS.dataTokensMin - 1))
    await expect(readTextFiles(path)).rejects.toThrow(
      `has only ${LIMITS.dataTokensMin - 1} characters`,
    )
    file('a.txt', 'é'.repeat(LIMITS.dataTokensMin))
    await expect(readTextFiles(path)).resolves.toHaveLength(2 * LIMITS.dataTokensMin)
  })

  test('an abort ends it', async () => {
    const signal = AbortSignal.abort()
    await expect(readTextFiles(file('a.txt'), { signal })).rejects.toMatchObject({
      code: 'aborted',
    })
  })
})

describe('bad data is one line that names the file and the remedy', () => {
  test.each([
    ['absent', undefined, 'data_unreadable', 'does not exist: check the path'],
    ['empty.txt', '', 'data_unusable', 'is empty'],
    ['small.txt', 'too little', 'data_unusable', 'has only 10 characters'],
    ['image.png', Uint8Array.of(0x41, 0, 0x42), 'data_unusable', 'binary'],
    ['latin1.txt', Uint8Array.of(0x63, 0xe9, 0x20), 'data_unusable', 'not UTF-8'],
  ])('%s', async (name, content, code, message) => {
    const path = content === undefined ? join(folder, name) : file(name, content)
    const fault: unknown = await readTextFiles(path).catch((thrown: unknown) => thrown)
    expect(fault).toMatchObject({ code })
    expect(String(fault)).toContain(message)
    expect(String(fault)).toContain(path)
    expect(String(fault)).not.toContain('\n')
  })

  test('a binary file in a folder of text is named', async () => {
    file('a.txt')
    const path = file('b/photo.jpg', Uint8Array.of(0xff, 0xd8, 0, 0x10))
    await expect(readTextFiles(folder)).rejects.toThrow(path)
  })

  test('a folder without text', async () => {
    await expect(readTextFiles(folder)).rejects.toThrow('holds no files')
    file('empty', '')
    await expect(readTextFiles(folder)).rejects.toThrow('is empty')
  })

  test.skipIf(process.getuid?.() === 0 || process.platform === 'win32')(
    'a file without permission',
    async () => {
      const path = file('a.txt')
      chmodSync(path, 0)
      await expect(readTextFiles(path)).rejects.toMatchObject({ code: 'data_unreadable' })
    },
  )

  test.skipIf(process.platform === 'win32')('what is no file is not waited for', async () => {
    const path = join(folder, 'socket')
    const server = createServer()
    await new Promise<void>((resolve) => {
      server.listen(path, resolve)
    })
    await expect(readTextFiles(path)).rejects.toThrow('neither a file nor a folder')
    server.close()
  })

  test('a file larger than the limit is refused before it is read', async () => {
    const path = file('huge.txt', '')
    truncateSync(path, LIMITS.localDataBytes + 1)
    await expect(readTextFiles(path)).rejects.toThrow('use a part of it')
  })
})
