/** What can only be seen from outside a process: that it ends, and how the engine starts without the native binding. */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { describe, expect, test } from 'vitest'

const run = promisify(execFile)
const engine = new URL('../../../../node/engine/engine.ts', import.meta.url).href
const trainer = new URL('./tiny-trainer.ts', import.meta.url).href

/** Runs a program in its own process and returns what it prints; throws when it does not end in 30 s. */
async function output(source: string, options: string[] = []): Promise<string> {
  const program = `
    import { createEngine } from '${engine}'
    import { tinyParameters, tinySpec } from '${trainer}'
    const warnings = []
    const logger = { debug() {}, info() {}, error() {}, warn: (...entry) => warnings.push(entry), child: () => logger }
    ${source}`
  const args = [...options, '--input-type=module-typescript', '--eval', program]
  const { stdout } = await run(process.execPath, args, { timeout: 30_000 })
  return stdout
}

/** Node options after which the native build cannot be imported, in any thread. */
function withoutNativeBuild(): string[] {
  const hook = `
    import { registerHooks } from 'node:module'
    registerHooks({
      resolve(specifier, context, next) {
        if (specifier === 'onnxruntime-node') throw new Error('no binding for this platform')
        return next(specifier, context)
      },
    })`
  return ['--import', `data:text/javascript,${encodeURIComponent(hook)}`]
}

describe('a process with an engine', () => {
  test('ends by itself, closed or not, idle or after training', async () => {
    const stdout = await output(`
      const idle = await createEngine({ logger })
      const used = await createEngine({ threads: 1, logger })
      const trainer = await used.open(tinySpec, tinyParameters)
      await trainer.innerSteps(0)
      console.log(used.backend, warnings.length)`)
    expect(stdout).toBe('native 0\n')
  })

  test('stays for the steps it waits for', async () => {
    const stdout = await output(`
      const used = await createEngine({ threads: 1, logger })
      const trainer = await used.open({ ...tinySpec, innerSteps: 300 }, tinyParameters)
      trainer.innerSteps(0).then(({ steps }) => console.log(steps))`)
    expect(stdout).toBe('300\n')
  })

  test('falls back to WebAssembly with one warning that says why', async () => {
    const stdout = await output(
      `const used = await createEngine({ threads: 1, logger })
      const trainer = await used.open(tinySpec, tinyParameters)
      const { steps } = await trainer.innerSteps(0)
      console.log(JSON.stringify({ backend: used.backend, warnings, steps }))
      await used.close()`,
      withoutNativeBuild(),
    )
    const reason = 'no binding for this platform'
    expect(JSON.parse(stdout)).toEqual({
      backend: `wasm (the native build did not load: ${reason})`,
      warnings: [['engine_fallback', { backend: 'wasm', reason }]],
      steps: 10,
    })
  })

  test('is told when only the native build was wanted', async () => {
    const stdout = await output(
      `await createEngine({ backend: 'native', logger }).catch(({ code, message }) => console.log(code, message))`,
      withoutNativeBuild(),
    )
    expect(stdout).toContain('engine_failed onnxruntime-node does not load (no binding')
  })
})
