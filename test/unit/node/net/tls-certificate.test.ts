import { X509Certificate } from 'node:crypto'
import { generateKeyPair } from '@libp2p/crypto/keys'
import type { PrivateKey } from '@libp2p/interface'
import { peerIdFromPrivateKey } from '@libp2p/peer-id'
import {
  generateCertificate as stockCertificate,
  verifyPeerCertificate as stockVerify,
} from '@libp2p/tls/utils'
import * as fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { createCertificate, verifyCertificate } from '../../../../node/net/tls-certificate.ts'

const DAY_MS = 86_400_000
const invalid = expect.objectContaining({ code: 'message_invalid' })

function bytesOf({ cert }: { cert: string }): Uint8Array {
  return new X509Certificate(cert).raw
}

function idOf(key: PrivateKey): string {
  return peerIdFromPrivateKey(key).toString()
}

describe('a certificate', () => {
  test('proves who made it, to this and to stock libp2p', async () => {
    const key = await generateKeyPair('Ed25519')
    const bytes = bytesOf(await createCertificate(key))
    expect((await verifyCertificate(bytes)).toString()).toBe(idOf(key))
    expect((await stockVerify(bytes)).toString()).toBe(idOf(key))
  })

  test.each(['Ed25519', 'secp256k1', 'RSA'] as const)(
    'made by stock libp2p with an %s identity is read',
    async (type) => {
      const key = await generateKeyPair(type)
      const bytes = bytesOf(await stockCertificate(key))
      expect((await verifyCertificate(bytes)).toString()).toBe(idOf(key))
    },
  )

  test('differs from one to the next, but for the identity', async () => {
    const key = await generateKeyPair('Ed25519')
    const [a, b] = [await createCertificate(key), await createCertificate(key)]
    expect(a.key).not.toBe(b.key)
    expect(new X509Certificate(a.cert).serialNumber).not.toBe(
      new X509Certificate(b.cert).serialNumber,
    )
  })

  test('holds whatever the clocks say; one with dates has a day of leeway', async () => {
    const key = await generateKeyPair('Ed25519')
    const own = bytesOf(await createCertificate(key))
    for (const now of [DAY_MS, Date.now(), Date.now() + 30_000 * DAY_MS]) {
      expect((await verifyCertificate(own, now)).toString()).toBe(idOf(key))
    }
    const stock = bytesOf(await stockCertificate(key))
    await verifyCertificate(stock, Date.now() - 0.9 * DAY_MS)
    await expect(verifyCertificate(stock, Date.now() - 2 * DAY_MS)).rejects.toThrow(/not valid yet/)
    await expect(verifyCertificate(stock, Date.now() + 40_000 * DAY_MS)).rejects.toThrow(/expired/)
  })

  test("with another's signature of another key is refused", async () => {
    const [victim, thief] = [await generateKeyPair('Ed25519'), await generateKeyPair('Ed25519')]
    // A thief who names the victim's key, and signs with its own.
    const forged = {
      ...thief,
      type: victim.type,
      publicKey: victim.publicKey,
      sign: (data: Uint8Array) => thief.sign(data),
    } as PrivateKey
    const bytes = bytesOf(await createCertificate(forged))
    await expect(verifyCertificate(bytes)).rejects.toThrow(/did not sign/)
  })

  test('changed in any byte is refused', async () => {
    const key = await generateKeyPair('Ed25519')
    const bytes = bytesOf(await createCertificate(key))
    await fc.assert(
      fc.asyncProperty(
        fc.nat(bytes.length - 1),
        fc.integer({ min: 1, max: 255 }),
        async (at, change) => {
          const changed = Uint8Array.from(bytes)
          changed[at] = (changed[at] ?? 0) ^ change
          await expect(verifyCertificate(changed)).rejects.toThrow(invalid)
        },
      ),
      { numRuns: 300 },
    )
  })

  test('cut off, or no certificate at all, is refused', async () => {
    const bytes = bytesOf(await createCertificate(await generateKeyPair('Ed25519')))
    await fc.assert(
      fc.asyncProperty(fc.nat(bytes.length - 1), async (length) => {
        await expect(verifyCertificate(bytes.subarray(0, length))).rejects.toThrow(invalid)
      }),
      { numRuns: 50 },
    )
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 400 }), async (garbage) => {
        await expect(verifyCertificate(garbage)).rejects.toThrow(invalid)
      }),
    )
  })
})
