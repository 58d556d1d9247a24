/**
 * Certificates of libp2p peers: self-signed by a key made for them, with an extension in which the peer's identity key
 * vouches for that key (https://github.com/libp2p/specs/blob/master/tls/tls.md).
 */
import { generateKeyPairSync, randomBytes, sign, X509Certificate } from 'node:crypto'
import { publicKeyFromProtobuf, publicKeyToProtobuf } from '@libp2p/crypto/keys'
import type { PeerId, PrivateKey } from '@libp2p/interface'
import { peerIdFromPublicKey } from '@libp2p/peer-id'
import { messageOf, ShoalError } from '../../src/errors.ts'
import { DER, decodeDer, decodeDerInside, encodeDer, encodeObjectIdentifier } from './der.ts'
import type { DerElement } from './der.ts'

const EXTENSION = encodeObjectIdentifier('1.3.6.1.4.1.53594.1.1')
const ECDSA_WITH_SHA256 = encodeDer(DER.sequence, encodeObjectIdentifier('1.2.840.10045.4.3.2'))
const SERIAL_NUMBER = encodeObjectIdentifier('2.5.4.5')
const SIGNED_PREFIX = Buffer.from('libp2p-tls-handshake:')

/** A clock may be wrong by a day: what proves the identity is the signature, not the date. */
const LEEWAY_MS = 86_400_000

/** PEM, as `node:tls` takes it. */
export interface Certificate {
  cert: string
  key: string
}

/** Valid at all times, so that neither side's clock matters. */
export async function createCertificate(identity: PrivateKey): Promise<Certificate> {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  const publicKeyInfo = publicKey.export({ type: 'spki', format: 'der' })
  const signature = await identity.sign(signedBytes(publicKeyInfo))
  const name = nameOf('shoal')
  const certified = encodeDer(
    DER.sequence,
    encodeDer(DER.context0, encodeDer(DER.integer, Uint8Array.of(2))),
    encodeDer(DER.integer, serialNumber()),
    ECDSA_WITH_SHA256,
    name,
    encodeDer(
      DER.sequence,
      encodeDer(DER.utcTime, Buffer.from('700101000000Z')),
      // "No well-defined expiration date" (RFC 5280, 4.1.2.5).
      encodeDer(DER.generalizedTime, Buffer.from('99991231235959Z')),
    ),
    name,
    publicKeyInfo,
    encodeDer(DER.context3, encodeDer(DER.sequence, extensionOf(identity, signature))),
  )
  const selfSignature = sign('sha256', certified, privateKey)
  const bytes = encodeDer(
    DER.sequence,
    certified,
    ECDSA_WITH_SHA256,
    encodeDer(DER.bitString, Uint8Array.of(0), selfSignature),
  )
  return {
    cert: new X509Certificate(bytes).toString(),
    key: privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
  }
}

/** The peer that made the certificate (DER). Throws `message_invalid`. */
export async function verifyCertificate(bytes: Uint8Array, now = Date.now()): Promise<PeerId> {
  try {
    return await verify(bytes, now)
  } catch (cause) {
    throw new ShoalError('message_invalid', `a peer's certificate is bad: ${messageOf(cause)}`, {
      cause,
    })
  }
}

async function verify(bytes: Uint8Array, now: number): Promise<PeerId> {
  const certificate = new X509Certificate(bytes)
  if (certificate.validFromDate.getTime() > now + LEEWAY_MS) throw new Error('not valid yet')
  if (certificate.validToDate.getTime() < now - LEEWAY_MS) throw new Error('expired')
  const isSelfSigned =
    certificate.issuer === certificate.subject && certificate.verify(certificate.publicKey)
  if (!isSelfSigned) throw new Error('not signed by its own key')
  const { publicKeyInfo, extension } = readCertificate(bytes)
  const [key, signature, ...more] = decodeDerInside(extension, DER.sequence)
  if (key?.tag !== DER.octetString || signature?.tag !== DER.octetString || more.length > 0) {
    throw new Error('malformed libp2p extension')
  }
  const publicKey = publicKeyFromProtobuf(key.content)
  if (!(await publicKey.verify(signedBytes(publicKeyInfo), signature.content))) {
    throw new Error('the identity did not sign its key')
  }
  return peerIdFromPublicKey(publicKey)
}

/** What `X509Certificate` does not tell. */
function readCertificate(bytes: Uint8Array): {
  publicKeyInfo: Uint8Array
  extension: Uint8Array
} {
  const [certified] = decodeDerInside(bytes, DER.sequence)
  if (certified === undefined) throw new Error('empty')
  const fields = decodeDer(certified.content)
  // Version, serial number, algorithm, issuer, validity, subject, key; the version is there in all with extensions.
  const publicKeyInfo = fields[6]
  const extensions = fields.find(({ tag }) => tag === DER.context3)
  if (fields[0]?.tag !== DER.context0 || publicKeyInfo === undefined || extensions === undefined) {
    throw new Error('no libp2p extension')
  }
  return {
    publicKeyInfo: publicKeyInfo.bytes,
    extension: findExtension(decodeDerInside(extensions.content, DER.sequence)),
  }
}

function findExtension(extensions: readonly DerElement[]): Uint8Array {
  let found: Uint8Array | undefined
  for (const { content } of extensions) {
    const [identifier, ...rest] = decodeDer(content)
    const value = rest.at(-1)
    const isCritical = rest.some(({ tag, content: [flag] }) => tag === DER.boolean && flag !== 0)
    if (identifier === undefined || value?.tag !== DER.octetString) {
      throw new Error('malformed extension')
    }
    if (Buffer.compare(identifier.bytes, EXTENSION) === 0) found ??= value.content
    else if (isCritical) throw new Error('unknown critical extension')
  }
  if (found === undefined) throw new Error('no libp2p extension')
  return found
}

function extensionOf(identity: PrivateKey, signature: Uint8Array): Uint8Array {
  const value = encodeDer(
    DER.sequence,
    encodeDer(DER.octetString, publicKeyToProtobuf(identity.publicKey)),
    encodeDer(DER.octetString, signature),
  )
  const critical = encodeDer(DER.boolean, Uint8Array.of(0xff))
  return encodeDer(DER.sequence, EXTENSION, critical, encodeDer(DER.octetString, value))
}

function signedBytes(publicKeyInfo: Uint8Array): Uint8Array {
  return Buffer.concat([SIGNED_PREFIX, publicKeyInfo])
}

function nameOf(text: string): Uint8Array {
  const value = encodeDer(DER.utf8String, Buffer.from(text))
  const attribute = encodeDer(DER.sequence, SERIAL_NUMBER, value)
  return encodeDer(DER.sequence, encodeDer(DER.set, attribute))
}

/** Positive, and without a leading zero byte. */
function serialNumber(): Uint8Array {
  const bytes = randomBytes(16)
  bytes[0] = 1 + ((bytes[0] ?? 0) % 127)
  return bytes
}
