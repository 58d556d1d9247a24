/** The two secrets of a data folder, each in a file that only its owner may read. */
import { randomBytes } from 'node:crypto'
import { chmod, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { messageOf, ShoalError } from '../../src/errors.ts'
import {
  createIdentity,
  identityFromBytes,
  identityToBytes,
  type Identity,
} from '../../src/net/identity.ts'
import { writeFileAtomic } from './atomic-file.ts'
import { errnoOf, storageFault } from './storage-fault.ts'

const SECRET_MODE = 0o600

/** The node's identity in `identity.key`, made on first use. Throws `config_invalid` when the file is malformed. */
export async function openIdentityFile(folder: string): Promise<Identity> {
  const path = join(folder, 'identity.key')
  const bytes = await readOrCreate(path, async () => identityToBytes(await createIdentity()))
  try {
    return identityFromBytes(bytes)
  } catch (cause) {
    throw new ShoalError(
      'config_invalid',
      `${path}: ${messageOf(cause)}; restore it from a backup, or remove it to start with a new identity`,
      { cause },
    )
  }
}

/** The bearer token of the local API in `api-token`: 32 random bytes in hex. Throws `config_invalid` when malformed. */
export async function openTokenFile(folder: string): Promise<string> {
  const path = join(folder, 'api-token')
  const bytes = await readOrCreate(path, async () => randomBytes(32).toString('hex'))
  const token = new TextDecoder().decode(bytes).trim()
  if (!/^[0-9a-f]{64}$/.test(token)) {
    throw new ShoalError(
      'config_invalid',
      `${path}: not 64 hexadecimal digits; remove it and the daemon makes a new one`,
    )
  }
  return token
}

async function readOrCreate(
  path: string,
  create: () => Promise<Uint8Array | string>,
): Promise<Uint8Array> {
  try {
    const bytes = await readIfThere(path)
    if (bytes !== undefined) return bytes
    await writeFileAtomic(path, `${path}.new`, await create(), SECRET_MODE)
    return await readFile(path)
  } catch (error) {
    throw storageFault(error, path)
  }
}

/** A copied or restored file may have come with a wider mode. */
async function readIfThere(path: string): Promise<Uint8Array | undefined> {
  try {
    await chmod(path, SECRET_MODE)
    return await readFile(path)
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined
    throw error
  }
}
