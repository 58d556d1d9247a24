/** What the routes of outside trainers and of averages do. */
import type { ShoalNode } from '../../src/node.ts'
import { readSafetensors, readTensors, writeSafetensors } from '../../src/tensor/safetensors.ts'
import { schemaHash } from '../../src/tensor/schema.ts'
import { bytesHandler, handler } from './handler.ts'
import { released } from './octets.ts'
import { ROUTES } from './routes.ts'

export function trainingHandlers(node: ShoalNode) {
  return {
    parameters: bytesHandler(ROUTES.parameters, async ({ run }, { signal }) => {
      const { schema, parameters, outerStep } = await node.parameters(run, signal)
      return { output: { outerStep }, ...writeSafetensors(schema, parameters) }
    }),
    outerStep: bytesHandler(ROUTES.outerStep, async (input, { signal, body }) => {
      const { run, innerSteps = node.manifest(run).innerSteps, ...step } = input
      const script = node.trainingScript(run)
      const { schema } = script
      const result = await script.outerStep(
        { ...step, innerSteps },
        (target) => readSafetensors(released(body), schema, target),
        signal,
      )
      const { parameters, partners, consensusDistance, ...output } = result
      return {
        output: {
          ...output,
          partners: [...partners],
          consensusDistance: consensusDistance ?? undefined,
        },
        ...writeSafetensors(schema, parameters),
      }
    }),
    progress: handler(ROUTES.progress, ({ run, ...progress }) =>
      node.trainingScript(run).progress(progress),
    ),
    average: bytesHandler(ROUTES.average, async (input, { signal, body }) => {
      const { schema, parameters } = await readTensors(released(body))
      const given = { ...input, parameters, schemaHash: schemaHash(schema) }
      const { peers, parameters: mean } = await node.averaging.average(given, signal)
      return { output: { round: input.round, peers }, ...writeSafetensors(schema, mean) }
    }),
  }
}
