import { describe, expect, test } from 'vitest'
import { specOf } from '../../../../node/dashboard/dialogs.js'
import { runSpecSchema } from '../../../../src/run/manifest.ts'

function fields(more: string, others: Readonly<Record<string, string>> = {}): FormData {
  const form = new FormData()
  const given = { name: ' whales ', data: '/text', model: 'tiny', outerSteps: '7', innerSteps: '9' }
  for (const [name, value] of Object.entries({ ...given, minPeers: '2', more, ...others })) {
    form.set(name, value)
  }
  return form
}

describe('the create dialog', () => {
  test('makes a spec that the node takes', () => {
    const spec = runSpecSchema.parse(specOf(fields('', { public: 'on' })))
    expect(spec).toMatchObject({
      name: 'whales',
      data: '/text',
      outerSteps: 7,
      innerSteps: 9,
      public: true,
      shareData: false,
      model: { layers: 1, embedding: 32 },
      limits: { minPeers: 2 },
    })
  })

  test('lets further fields win, also within the model and the limits', () => {
    const more = '{"outerSteps": 3, "model": {"layers": 2}, "limits": {"checkpointEvery": 4}}'
    const spec = runSpecSchema.parse(specOf(fields(more)))
    expect(spec).toMatchObject({
      outerSteps: 3,
      model: { layers: 2, embedding: 32 },
      limits: { minPeers: 2, checkpointEvery: 4 },
    })
  })

  test.each(['{', '[]', '1', 'null'])('says that %s is no object', (more) => {
    expect(() => specOf(fields(more))).toThrow('not a JSON object')
  })
})
