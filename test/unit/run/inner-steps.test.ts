import { expect, test } from 'vitest'
import { systemClock } from '../../../src/clock.ts'
import { planBeside } from '../../../src/run/inner-steps.ts'
import { modelSchema } from '../../../src/run/model-schema.ts'
import { createOutsideTrainer } from '../../../src/run/outside-trainer.ts'
import { initialProgress } from '../../../src/run/run-context.ts'
import { smallManifest } from './small-manifest.ts'

test.each([
  ['overlap', { overlapSteps: 2 }, 0, false, { steps: 2, latest: 10 }],
  ['no overlap', {}, 0, false, { steps: 0, latest: 0 }],
  ['the last outer step', { overlapSteps: 2 }, 9, false, { steps: 0, latest: 0 }],
  ['an outside trainer', { overlapSteps: 2 }, 0, true, { steps: 0, latest: 0 }],
])('what is trained beside a round: %s', (_, averaging, outerStep, isOutside, plan) => {
  const manifest = smallManifest({ averaging, innerSteps: 20, outerSteps: 10 })
  const schema = modelSchema(manifest.model)
  const outside = isOutside ? createOutsideTrainer({ schema, clock: systemClock }) : undefined
  const progress = { ...initialProgress(), outerStep }
  expect(planBeside({ manifest, outside, progress }, 20)).toEqual(plan)
})
