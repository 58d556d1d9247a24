import { describe, expect, test } from 'vitest'
import { parseDemoOptions } from '../../../../scripts/demo/options.ts'
import { asFault } from '../../../../src/errors.ts'

function faultOf(...argv: string[]): { code: string; message: string } {
  try {
    parseDemoOptions(argv)
  } catch (thrown) {
    return asFault(thrown)
  }
  throw new Error('no fault was thrown')
}

describe('options of the demo', () => {
  test('have defaults', () => {
    expect(parseDemoOptions([])).toEqual({ peers: 4, baselines: false, json: false })
  })

  test('are all read', () => {
    const argv =
      '--data book.txt --peers 3 --outer-steps 7 --seed s --keep out --baselines --json'.split(' ')
    expect(parseDemoOptions(argv)).toEqual({
      data: 'book.txt',
      peers: 3,
      outerSteps: 7,
      seed: 's',
      keep: 'out',
      baselines: true,
      json: true,
    })
  })

  test('--help lists every option', () => {
    const parsed = parseDemoOptions(['--help'])
    const help = 'help' in parsed ? parsed.help : ''
    for (const name of ['data', 'peers', 'outer-steps', 'seed', 'keep', 'baselines', 'json']) {
      expect(help).toContain(`--${name}`)
    }
  })

  test.each([['1'], ['17'], ['x'], ['2.5'], ['-3'], ['']])('refuse %j peers', (peers) => {
    const fault = faultOf('--peers', peers)
    expect(fault.code).toBe('usage')
    expect(fault.message).toContain('from 2 to 16')
  })

  test('refuse what they do not know, in one line', () => {
    for (const argv of [['--peer', '3'], ['book.txt'], ['--data']]) {
      const { code, message } = faultOf(...argv)
      expect(code).toBe('usage')
      expect(message).not.toContain('\n')
    }
    expect(faultOf('--peer', '3').message).toContain('--peers')
  })
})
