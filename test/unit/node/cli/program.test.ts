import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { COMMANDS, runProgram } from '../../../../node/cli/program.ts'

let cwd: string
beforeAll(() => {
  cwd = mkdtempSync(join(tmpdir(), 'shoal-cli-'))
})
afterAll(() => rmSync(cwd, { recursive: true, force: true }))

interface Outcome {
  code: number
  stdout: string
  stderr: string
}

async function shoal(...argv: string[]): Promise<Outcome> {
  const outcome = { code: 0, stdout: '', stderr: '' }
  outcome.code = await runProgram(argv, {
    stdout: { write: (text) => (outcome.stdout += text) },
    stderr: { write: (text) => (outcome.stderr += text) },
    env: { XDG_CONFIG_HOME: join(cwd, 'config'), XDG_DATA_HOME: join(cwd, 'data') },
    cwd,
    signal: new AbortController().signal,
  })
  return outcome
}

describe('help', () => {
  test.each(COMMANDS.map((command) => [command.name, command] as const))(
    '%s has a summary, examples and the options of all commands',
    async (name, command) => {
      const { code, stdout, stderr } = await shoal(...name.split(' '), '--help')
      expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
      expect(stdout).toContain(command.summary.slice(0, 30))
      for (const example of command.examples) expect(stdout).toContain(`  shoal ${example}\n`)
      for (const option of ['--json', '--data-dir']) expect(stdout).toContain(option)
    },
  )

  test('names every command and group', async () => {
    const { stdout } = await shoal('--help')
    for (const { name } of COMMANDS) expect(stdout).toContain(`\n  ${name.split(' ')[0]}`)
    expect((await shoal('run', '--help')).stdout).toContain('join')
  })

  test('the daemon lists every setting with its environment variable', async () => {
    const { stdout } = await shoal('daemon', '--help')
    for (const word of ['--api-port', 'SHOAL_API_PORT', '--no-mdns', 'SHOAL_LOG_LEVEL']) {
      expect(stdout).toContain(word)
    }
  })
})

describe('usage faults are one line with exit code 2', () => {
  test.each([
    [['statsu'], "unknown command 'statsu' (Did you mean status?)"],
    [['run', 'crate', 'x'], "unknown command 'crate' (Did you mean create?)"],
    [['status', '--jsn'], "unknown option '--jsn' (Did you mean --json?)"],
    [['run', 'create'], "missing required argument 'spec'"],
    [['run', 'leave', 'a', 'b'], 'too many arguments'],
    [['sample', 'x', '--prompt', 'a', '--tokens', 'many'], '--tokens must be a whole number'],
    [
      ['run', 'join', 'x', '--trainer', 'pytorch'],
      "--trainer is embedded or outside, not 'pytorch'",
    ],
  ])('%j', async (argv, message) => {
    const { code, stdout, stderr } = await shoal(...argv)
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' })
    expect(stderr).toContain(message)
    expect(stderr).toMatch(/^error: [^\n]+\n$/)
  })

  test('a missing command shows the help', async () => {
    const { code, stdout, stderr } = await shoal()
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' })
    expect(stderr).toContain('Usage: shoal')
  })

  test('a bad setting is named before anything is started', async () => {
    const outcome = await shoal('daemon', '--api-port', 'high')
    expect(outcome).toMatchObject({ code: 2, stdout: '' })
    expect(outcome.stderr).toBe("error: --api-port: 'high' is not a whole number\n")
    expect(existsSync(join(cwd, 'data'))).toBe(false)
  })
})

describe('without a daemon', () => {
  test.each([
    [['status']],
    [['peers']],
    [['run', 'list']],
    [['run', 'show', 'bafy']],
    [['checkpoint', 'list']],
    [['invite']],
    [['shutdown']],
  ])('%j says how to start one, exit code 3', async (argv) => {
    const { code, stdout, stderr } = await shoal(...argv)
    expect({ code, stdout }).toEqual({ code: 3, stdout: '' })
    expect(stderr).toContain('start one with `shoal daemon`')
    expect(stderr).toContain(join(cwd, 'data', 'shoal'))
  })

  test('the file of a daemon that was killed is not believed', async () => {
    const dataDir = mkdtempSync(join(cwd, 'killed-'))
    // A process id beyond Linux's largest.
    const file = { version: 1, url: 'http://127.0.0.1:9', pid: 4_194_305 }
    writeFileSync(join(dataDir, 'api.json'), JSON.stringify(file))
    writeFileSync(join(dataDir, 'api-token'), 'secret')
    expect(await shoal('status', '--data-dir', dataDir)).toMatchObject({ code: 3 })
  })

  test('faults are JSON with --json', async () => {
    const { code, stdout, stderr } = await shoal('status', '--json')
    expect({ code, stdout }).toEqual({ code: 3, stdout: '' })
    expect(JSON.parse(stderr)).toMatchObject({ error: { code: 'daemon_unreachable' } })
    const usage = await shoal('statsu', '--json')
    expect(JSON.parse(usage.stderr)).toMatchObject({ error: { code: 'usage' } })
  })

  test('a bad spec is named first', async () => {
    const outcome = await shoal('run', 'create', 'absent.toml')
    expect(outcome).toMatchObject({ code: 2, stdout: '' })
    expect(outcome.stderr).toContain('run spec absent.toml does not exist')
  })

  test('nothing is written', async () => {
    await shoal('status')
    expect(readdirSync(cwd)).not.toContain('data')
  })
})

test('version', async () => {
  expect((await shoal('version')).stdout).toMatch(/^shoal \d+\.\d+\.\d+ \(Node v\d+/)
  expect(JSON.parse((await shoal('version', '--json')).stdout)).toMatchObject({
    version: expect.stringMatching(/^\d+\.\d+\.\d+$/),
  })
})
