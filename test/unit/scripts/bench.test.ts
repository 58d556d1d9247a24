import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { describe, expect, test } from 'vitest'
import { isMet, type Finding } from '../../../scripts/bench/finding.ts'

const BENCH = join(import.meta.dirname, '../../../scripts/bench.ts')

function start(...args: string[]) {
  const child = spawn(process.execPath, [BENCH, ...args], { stdio: ['ignore', 'pipe', 'pipe'] })
  const ended = once(child, 'close').then(([code]: unknown[]) => code)
  return { child, ended }
}

async function outcomeOf(...args: string[]) {
  const { child, ended } = start(...args)
  const [stdout, stderr, code] = await Promise.all([text(child.stdout), text(child.stderr), ended])
  return { stdout, stderr, code }
}

describe('bench', () => {
  test('lists the benches, one line each', async () => {
    const { stdout, code } = await outcomeOf()
    expect(code).toBe(0)
    expect(stdout).toMatch(/^ {2}convergence {2}\S/m)
    expect(stdout).toMatch(/^ {2}train {8}\S/m)
  })

  test.each([
    [['convergense'], "usage: unknown bench 'convergense': did you mean 'convergence'?\n"],
    [['convergence', '--only', 'b33a'], "usage: unknown bar 'b33a' in --only: did you mean b3a?\n"],
    [
      ['convergence', '--quick', '--full'],
      'usage: --quick and --full exclude one another: choose one\n',
    ],
    [['averaging', '--peers', '6'], "usage: --peers is 4 to 32 in steps of 4, not '6'\n"],
    [['convergence', '--seeds', '0'], "usage: --seeds is a whole number from 1 to 16, not '0'\n"],
    [
      ['convergence', '--activation', 'relu'],
      "usage: --activation is gelu or relu-squared, not 'relu'\n",
    ],
  ])('refuses %j with the remedy', async (args, line) => {
    const { stdout, stderr, code } = await outcomeOf(...args)
    expect({ stdout, stderr, code }).toEqual({ stdout: '', stderr: line, code: 2 })
  })

  test('prints one object with --json', async () => {
    const { stdout, code } = await outcomeOf('convergence', '--quick', '--only', 'b10', '--json')
    expect(code).toBe(0)
    const report: unknown = JSON.parse(stdout)
    expect(report).toMatchObject({
      bench: 'convergence',
      bars: [{ bar: 'B10', pass: true }, {}, {}, {}, {}, {}],
    })
  })

  test('ends soon and with 130 on Ctrl-C', async () => {
    const { child, ended } = start('convergence', '--only', 'b3a')
    const [line]: unknown[] = await once(child.stderr, 'data')
    expect(String(line)).toContain('bars B3a')
    child.kill('SIGINT')
    expect(await ended).toBe(130)
  })
})

test('a figure that is not a number meets no bar', () => {
  const finding: Finding = {
    bar: 'B3a',
    configuration: 'diverged',
    figure: NaN,
    relation: '<=',
    limit: 1,
    unit: 'excess',
  }
  expect(isMet(finding)).toBe(false)
  expect(isMet({ ...finding, relation: '>=' })).toBe(false)
  expect(isMet({ ...finding, figure: 1 })).toBe(true)
})
