/**
 * Run ids, invite links and manifest bytes.
 *
 * The run id is the CID (v1, dag-cbor, sha-256) of the manifest, so whoever has the id can check the manifest,
 * whoever sent it. A link is `shoal:<run id>?peer=<multiaddr>&peer=…`.
 */
import { multiaddr } from '@multiformats/multiaddr'
import { CID } from 'multiformats/cid'
import { ShoalError } from '../errors.ts'
import { LIMITS } from '../limits.ts'
import { cidOf, decodeCbor, encodeCbor } from '../store/content.ts'
import { MANIFEST_VERSION, manifestSchema, type Manifest } from './manifest.ts'

const DAG_CBOR = 0x71

/** A run, and peers that know it. */
export interface RunLink {
  id: string
  /** Multiaddrs of peers to ask first. */
  peers: string[]
}

/** Takes a bare run id or a `shoal:` link. Throws `link_invalid`. */
export function parseRunLink(text: string): RunLink {
  const trimmed = text.trim()
  const body = trimmed.startsWith('shoal:') ? trimmed.slice('shoal:'.length) : trimmed
  const [id = '', query = ''] = body.split('?', 2)
  const peers = new URLSearchParams(query).getAll('peer')
  for (const peer of peers) {
    try {
      multiaddr(peer)
    } catch (cause) {
      throw new ShoalError(
        'link_invalid',
        `the link names a peer address that is no multiaddr: ${peer}`,
        { cause },
      )
    }
  }
  return { id: parseRunId(id).toString(), peers: peers.slice(0, 8) }
}

/** Throws `link_invalid` for anything but the CID of a manifest. */
export function parseRunId(text: string): CID {
  try {
    const cid = CID.parse(text)
    if (cid.version !== 1 || cid.code !== DAG_CBOR) throw new Error('not the CID of a manifest')
    return cid
  } catch (cause) {
    throw new ShoalError(
      'link_invalid',
      `"${text.slice(0, 80)}" is no run id: copy the id or the shoal: link from \`shoal invite\` or \`shoal run list\``,
      { cause },
    )
  }
}

/** The link that lets others join a run: `shoal:<run id>?peer=<multiaddr>…`. */
export function formatRunLink({ id, peers }: RunLink): string {
  const query = peers.map((peer) => `peer=${peer}`).join('&')
  return query === '' ? `shoal:${id}` : `shoal:${id}?${query}`
}

/** Canonical bytes of a manifest and the run id that they have. */
export async function encodeManifest(
  manifest: Manifest,
): Promise<{ id: string; cid: CID; bytes: Uint8Array }> {
  const bytes = encodeCbor(manifestSchema.parse(manifest))
  if (bytes.length > LIMITS.manifestBytes) {
    throw new ShoalError(
      'spec_invalid',
      `the manifest has ${bytes.length} bytes, more than ${LIMITS.manifestBytes}`,
    )
  }
  const cid = await cidOf(bytes, 'dag-cbor')
  return { id: cid.toString(), cid, bytes }
}

/** Parses bytes that were already checked against the run id. Throws `version_unsupported` or `message_invalid`. */
export function decodeManifest(bytes: Uint8Array): Manifest {
  const value = decodeCbor(bytes, LIMITS.manifestBytes)
  const version =
    typeof value === 'object' && value !== null && 'version' in value ? value.version : undefined
  if (version !== MANIFEST_VERSION) {
    throw new ShoalError(
      'version_unsupported',
      `the run's manifest has version ${String(version)}, this node knows ${MANIFEST_VERSION}: update one of the two`,
    )
  }
  const parsed = manifestSchema.safeParse(value)
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]
  throw new ShoalError(
    'message_invalid',
    `the run's manifest is malformed at ${issue?.path.join('.')}: ${issue?.message}`,
  )
}
