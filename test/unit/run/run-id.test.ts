import { assert, property, string } from 'fast-check'
import { describe, expect, test } from 'vitest'
import { ShoalError } from '../../../src/errors.ts'
import {
  freshModel,
  MANIFEST_VERSION,
  runSpecSchema,
  type Manifest,
} from '../../../src/run/manifest.ts'
import {
  decodeManifest,
  encodeManifest,
  formatRunLink,
  parseRunId,
  parseRunLink,
} from '../../../src/run/run-id.ts'
import { encodeCbor } from '../../../src/store/content.ts'

const spec = runSpecSchema.parse({ data: 'text.txt' })
const manifest: Manifest = {
  version: MANIFEST_VERSION,
  name: 'test run',
  public: true,
  model: freshModel(spec, 3),
  schemaHash: 'a'.repeat(64),
  initial: { bytes: 0, chunks: [] },
  data: {
    tokenizer: { kind: 'char', vocabulary: ['a', 'b', 'c'] },
    text: null,
    validationFraction: 0.05,
  },
  batchSequences: spec.batchSequences,
  innerSteps: spec.innerSteps,
  outerSteps: spec.outerSteps,
  inner: spec.inner,
  averaging: spec.averaging,
  limits: spec.limits,
  admins: [],
  seed: 'seed',
}

describe('manifest', () => {
  test('comes back from its bytes, and the id is a function of the content', async () => {
    const { id, bytes } = await encodeManifest(manifest)
    expect(decodeManifest(bytes)).toEqual(manifest)
    expect((await encodeManifest(structuredClone(manifest))).id).toBe(id)
    expect((await encodeManifest({ ...manifest, seed: 'other' })).id).not.toBe(id)
  })

  test('an unknown version is refused, not guessed', () => {
    const bytes = encodeCbor({ ...manifest, version: 2 })
    expect(() => decodeManifest(bytes)).toThrow(
      expect.objectContaining({ code: 'version_unsupported' }),
    )
  })

  test('an unknown field is refused', () => {
    const bytes = encodeCbor({ ...manifest, extra: 1 })
    expect(() => decodeManifest(bytes)).toThrow(
      expect.objectContaining({ code: 'message_invalid' }),
    )
  })
})

describe('links', () => {
  test('come back from their text', async () => {
    const { id } = await encodeManifest(manifest)
    const peers = [
      '/ip4/127.0.0.1/tcp/4010/p2p/12D3KooWJ8uPAyyFxhaNd3LR95Ts7v28yNNqtPEsSvZRiqU5ZXeg',
    ]
    expect(parseRunLink(formatRunLink({ id, peers }))).toEqual({ id, peers })
    expect(parseRunLink(` ${id}\n`)).toEqual({ id, peers: [] })
    expect(parseRunId(id).toString()).toBe(id)
  })

  test('anything else is a link_invalid fault and nothing worse', () => {
    assert(
      property(string(), (text) => {
        try {
          parseRunLink(text)
        } catch (thrown) {
          expect(thrown).toBeInstanceOf(ShoalError)
          expect(thrown).toMatchObject({ code: 'link_invalid' })
        }
      }),
    )
  })

  test('the CID of a blob is no run id', () => {
    const blob = 'bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy'
    expect(() => parseRunId(blob)).toThrow(expect.objectContaining({ code: 'link_invalid' }))
  })

  test('a peer that is no multiaddr is named', async () => {
    const { id } = await encodeManifest(manifest)
    expect(() => parseRunLink(`shoal:${id}?peer=nonsense`)).toThrow(/nonsense/)
  })
})
