/** What the routes of outside trainers and of averages do. */
import { ShoalError } from '../../src/errors.ts'
import { LIMITS } from '../../src/limits.ts'
import { readSafetensors, readTensors, writeSafetensors } from '../../src/tensor/safetensors.ts'
import { schemaHash } from '../../src/tensor/schema.ts'
import { bytesHandler, handler } from './handler.ts'
import type { HandlerOptions } from './handlers.ts'
import { flowing, released, type Download } from './octets.ts'
import { ROUTES } from './routes.ts'

export function trainingHandlers({ node, clock }: HandlerOptions) {
  const gate = createGate(LIMITS.tensorCalls)
  return {
    parameters: bytesHandler(ROUTES.parameters, ({ run }, { signal }) =>
      gate(async () => {
        const { schema, parameters, outerStep } = await node.parameters(run, signal)
        return { output: { outerStep }, ...writeSafetensors(schema, parameters) }
      }),
    ),
    outerStep: bytesHandler(ROUTES.outerStep, async (input, { signal, body }) => {
      const { run, innerSteps = node.manifest(run).innerSteps, ...step } = input
      const script = node.trainingScript(run)
      const { schema } = script
      const result = await script.outerStep(
        { ...step, innerSteps },
        (target) => readSafetensors(released(flowing(body, clock)), schema, target),
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
    average: bytesHandler(ROUTES.average, (input, { signal, body }) =>
      gate(async () => {
        const { schema, parameters } = await readTensors(released(flowing(body, clock)))
        const given = { ...input, parameters, schemaHash: schemaHash(schema) }
        const { peers, parameters: mean } = await node.averaging.average(given, signal)
        return { output: { round: input.round, peers }, ...writeSafetensors(schema, mean) }
      }),
    ),
  }
}

type Gate = <T>(call: () => Promise<Download<T>>) => Promise<Download<T>>

/** Lets so many calls hold a vector at once, from their begin until all of their answer is sent. */
function createGate(max: number): Gate {
  let inside = 0
  return async (call) => {
    if (inside >= max) {
      throw new ShoalError('limit_exceeded', `${inside} other calls move tensors now: try again`)
    }
    inside++
    try {
      const download = await call()
      return { ...download, content: whenRead(download.content ?? [], () => inside--) }
    } catch (thrown) {
      inside--
      throw thrown
    }
  }
}

async function* whenRead(
  content: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  leave: () => void,
): AsyncGenerator<Uint8Array, void> {
  try {
    yield* content
  } finally {
    leave()
  }
}
