/** A peer's Ed25519 identity: it signs, and its peer id carries the public key that verifies. */
import {
  generateKeyPair,
  generateKeyPairFromSeed,
  privateKeyFromProtobuf,
  privateKeyToProtobuf,
} from '@libp2p/crypto/keys'
import type { PrivateKey } from '@libp2p/interface'
import { peerIdFromPrivateKey, peerIdFromString } from '@libp2p/peer-id'
import { ShoalError } from '../errors.ts'

/** The Ed25519 key of a node, and the peer id that is made of it. */
export interface Identity {
  readonly peerId: string
  readonly privateKey: PrivateKey
  sign(bytes: Uint8Array): Promise<Uint8Array>
}

function identityFrom(privateKey: PrivateKey): Identity {
  return {
    peerId: peerIdFromPrivateKey(privateKey).toString(),
    privateKey,
    sign: async (bytes) => privateKey.sign(bytes),
  }
}

/** A new identity; with a 32-byte seed always the same one (tests, simulations). */
export async function createIdentity(seed?: Uint8Array): Promise<Identity> {
  return identityFrom(
    seed === undefined
      ? await generateKeyPair('Ed25519')
      : await generateKeyPairFromSeed('Ed25519', seed),
  )
}

/** libp2p's protobuf container, the same as go-libp2p and rust-libp2p read. */
export function identityToBytes(identity: Identity): Uint8Array {
  return privateKeyToProtobuf(identity.privateKey)
}

/** Throws `config_invalid` when the bytes are not an Ed25519 private key. */
export function identityFromBytes(bytes: Uint8Array): Identity {
  try {
    const key = privateKeyFromProtobuf(bytes)
    if (key.type !== 'Ed25519') throw new Error(`key type ${key.type}`)
    return identityFrom(key)
  } catch (cause) {
    throw new ShoalError(
      'config_invalid',
      'the identity key is not an Ed25519 key in libp2p format',
      { cause },
    )
  }
}

/** Whether `signature` over `bytes` was made by the owner of `peerId`; false for malformed ids and signatures. */
export async function verifySignature(
  peerId: string,
  bytes: Uint8Array,
  signature: Uint8Array,
): Promise<boolean> {
  try {
    const { publicKey } = peerIdFromString(peerId)
    return publicKey !== undefined && (await publicKey.verify(bytes, signature))
  } catch {
    return false
  }
}
