import { chmodSync, existsSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { openDataFolder } from '../../../../node/store/data-folder.ts'
import { silentLogger } from '../../../../src/log.ts'
import { cidOf } from '../../../../src/store/content.ts'
import { temporaryFolders } from './temporary-folder.ts'

const temporaryFolder = temporaryFolders()
const modeOf = (path: string): number => statSync(path).mode & 0o777

describe('data folder', () => {
  test('is made on first start with all in it private, and is the same on the next', async () => {
    const path = join(temporaryFolder(), 'deep', 'shoal')
    const first = await openDataFolder(path, silentLogger)
    const cid = await cidOf(Uint8Array.of(5), 'raw')
    await first.blobs.put(cid, Uint8Array.of(5))
    await first.records.put('a', Uint8Array.of(6))
    first.close()
    expect(modeOf(path)).toBe(0o700)
    for (const file of ['shoal.db', 'identity.key', 'api-token']) {
      expect([file, modeOf(join(path, file))]).toEqual([file, 0o600])
    }
    expect(first.token).toMatch(/^[0-9a-f]{64}$/)
    expect(readFileSync(join(path, 'api-token'), 'utf8')).toBe(first.token)

    const second = await openDataFolder(path, silentLogger)
    expect(second.identity.peerId).toBe(first.identity.peerId)
    expect(second.token).toBe(first.token)
    expect(await second.blobs.get(cid)).toEqual(Uint8Array.of(5))
    expect(await second.records.get('a')).toEqual(Uint8Array.of(6))
    second.close()
  })

  test('two folders have two identities and two tokens', async () => {
    const one = await openDataFolder(join(temporaryFolder(), 'a'), silentLogger)
    const two = await openDataFolder(join(temporaryFolder(), 'b'), silentLogger)
    expect(one.identity.peerId).not.toBe(two.identity.peerId)
    expect(one.token).not.toBe(two.token)
    one.close()
    two.close()
  })

  test('a second user is refused, with the folder and the remedy, and disturbs nothing', async () => {
    const path = join(temporaryFolder(), 'shoal')
    const first = await openDataFolder(path, silentLogger)
    await expect(openDataFolder(path, silentLogger)).rejects.toMatchObject({
      code: 'data_folder_in_use',
      message: `the data folder ${path} is in use by another daemon; stop it, or give this one a folder of its own with --data-dir`,
    })
    await first.records.put('still', Uint8Array.of(1))
    expect(await first.records.get('still')).toEqual(Uint8Array.of(1))
    first.close()
    const second = await openDataFolder(path, silentLogger)
    second.close()
  })

  test.each([
    ['identity.key', 'not a key', 'remove it to start with a new identity'],
    ['identity.key', '', 'remove it to start with a new identity'],
    ['api-token', 'guess me', 'remove it and the daemon makes a new one'],
    ['api-token', '', 'remove it and the daemon makes a new one'],
  ])('a malformed %s (%j) is refused, not replaced', async (file, content, remedy) => {
    const path = join(temporaryFolder(), 'shoal')
    const first = await openDataFolder(path, silentLogger)
    first.close()
    writeFileSync(join(path, file), content)
    await expect(openDataFolder(path, silentLogger)).rejects.toMatchObject({
      code: 'config_invalid',
      message: expect.stringContaining(join(path, file)),
    })
    await expect(openDataFolder(path, silentLogger)).rejects.toThrow(remedy)
    expect(readFileSync(join(path, file), 'utf8')).toBe(content)
    // The failed start has given the folder free, and the remedy works.
    rmSync(join(path, file))
    const again = await openDataFolder(path, silentLogger)
    again.close()
  })

  test('a database that has lost all its bytes is told, and a removed one starts afresh', async () => {
    const path = join(temporaryFolder(), 'shoal')
    const first = await openDataFolder(path, silentLogger)
    await first.records.put('a', Uint8Array.of(6))
    first.close()
    writeFileSync(join(path, 'shoal.db'), '')
    await expect(openDataFolder(path, silentLogger)).rejects.toMatchObject({
      code: 'state_corrupt',
      message: expect.stringMatching(/shoal\.db is damaged \(it is empty\); [^\n]*remove it/),
    })
    rmSync(join(path, 'shoal.db'))
    const again = await openDataFolder(path, silentLogger)
    expect(again.identity.peerId).toBe(first.identity.peerId)
    expect(await again.records.get('a')).toBeUndefined()
    again.close()
  })

  test('secrets that came with a wide mode are closed again', async () => {
    const path = join(temporaryFolder(), 'shoal')
    const first = await openDataFolder(path, silentLogger)
    first.close()
    chmodSync(join(path, 'identity.key'), 0o644)
    const second = await openDataFolder(path, silentLogger)
    second.close()
    expect(modeOf(join(path, 'identity.key'))).toBe(0o600)
  })

  test('a folder that cannot be made is named with the remedy', async () => {
    const file = join(temporaryFolder(), 'file')
    writeFileSync(file, '')
    await expect(openDataFolder(join(file, 'shoal'), silentLogger)).rejects.toMatchObject({
      code: 'storage_failed',
      message: expect.stringMatching(/choose another folder with --data-dir/),
    })
    await expect(openDataFolder(file, silentLogger)).rejects.toMatchObject({
      code: 'storage_failed',
      message: expect.stringMatching(/choose another folder with --data-dir/),
    })
    expect(existsSync(join(file, 'shoal'))).toBe(false)
  })
})
