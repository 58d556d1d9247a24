import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { readSpec } from '../../../../node/cli/spec.ts'

let cwd: string
beforeAll(() => {
  cwd = mkdtempSync(join(tmpdir(), 'shoal-spec-'))
})
afterAll(() => rmSync(cwd, { recursive: true, force: true }))

function write(name: string, text: string): string {
  writeFileSync(join(cwd, name), text)
  return name
}

describe('a run spec', () => {
  test('needs only data, whose path is relative to the spec', async () => {
    const spec = await readSpec(write('a.toml', 'data = "text.txt"\n'), { cwd })
    expect(spec).toMatchObject({ name: 'unnamed', data: join(cwd, 'text.txt'), innerSteps: 20 })
  })

  test('is TOML or JSON', async () => {
    const toml = write('b.toml', 'name = "b"\ndata = "/text"\n[model]\nlayers = 2\n')
    const json = write('b.json', '{"name":"b","data":"/text","model":{"layers":2}}')
    expect(await readSpec(toml, { cwd })).toEqual(await readSpec(json, { cwd }))
  })

  test('takes data from the command line, relative to the working folder', async () => {
    const spec = await readSpec(write('c.toml', 'name = "c"\n'), { cwd, data: 'own.txt' })
    expect(spec.data).toBe(join(cwd, 'own.txt'))
  })

  test('names what it starts from relative to itself, or by its CID', async () => {
    const cid = 'bafkreibm6jg3ux5qumhcn2b3flc3tyu6dmlb4xa7u5bf44yegnrjhc4yeq'
    const external = '[model]\nkind = "external"\n'
    const file = await readSpec(write('d.toml', `from = "a.safetensors"\n${external}`), { cwd })
    expect(file).toMatchObject({ from: join(cwd, 'a.safetensors'), model: { kind: 'external' } })
    const blob = await readSpec(write('e.toml', `from = "${cid}"\n${external}`), { cwd })
    expect(blob.from).toBe(cid)
    const folder = await readSpec(write('f.toml', 'data = "x"\nfrom = "model"\n'), { cwd })
    expect(folder).toMatchObject({ data: join(cwd, 'x'), from: join(cwd, 'model') })
  })

  test.each([
    ['syntax.toml', 'name = \n', 'syntax.toml line 1: not valid TOML (invalid value)'],
    ['syntax.json', '{"data": }', 'syntax.json: not valid JSON'],
    [
      'key.toml',
      'data = "x"\ninnerStep = 3\n',
      "unknown key 'innerStep', did you mean 'innerSteps'?",
    ],
    [
      'deep.toml',
      'data = "x"\n[model]\nlayer = 3\n',
      "unknown key 'model.layer', did you mean 'layers'?",
    ],
    ['range.toml', 'data = "x"\nouterSteps = 0\n', "'outerSteps': too small"],
    ['missing.toml', 'name = "x"\n', "'data' is missing"],
    ['several.toml', 'data = "x"\nouterSteps = 0\ninnerSteps = 0\n', '(and 1 more)'],
    ['list.json', '[]', 'expected object, received array'],
  ])('%s is refused in one line', async (name, text, message) => {
    const fault: unknown = await readSpec(write(name, text), { cwd }).catch((e: unknown) => e)
    expect(fault).toMatchObject({ code: 'spec_invalid' })
    expect(String(fault)).toContain(message)
    expect(String(fault)).toContain(name)
    expect(String(fault)).not.toContain('\n')
  })

  test('that is not there is named', async () => {
    await expect(readSpec('absent.toml', { cwd })).rejects.toThrow(
      'run spec absent.toml does not exist: check the path',
    )
  })
})
