import { expect, onTestFinished, test, vi } from 'vitest'
import { createApi } from '../../../../node/dashboard/api.js'
import { createHistory } from '../../../../node/dashboard/history.js'

test('refreshes that meet ask once, and nothing is added twice', async () => {
  const asked: string[] = []
  vi.stubGlobal('fetch', async (path: string) => {
    asked.push(path)
    await new Promise((resolve) => setTimeout(resolve, 5))
    const newest = asked.length
    return Response.json({ newest, steps: [], validations: [], members: [{ outerStep: newest }] })
  })
  onTestFinished(() => void vi.unstubAllGlobals())
  const history = createHistory(createApi('token'), 'a-run')
  await Promise.all([history.refresh(), history.refresh()])
  await history.refresh()
  expect(asked).toEqual([0, 1].map((after) => `/v1/runs/a-run/history?after=${after}`))
  expect(history.all.members).toHaveLength(2)
})
