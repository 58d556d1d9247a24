import { describe, expect, test } from 'vitest'
import { createStatusBlock } from '../../../node/progress.ts'
import type { TextStream } from '../../../node/progress.ts'

/** What a terminal shows after `output`: only the control sequences that a status block uses. */
function screenOf(output: string): string[] {
  const lines = ['']
  let row = 0
  for (const [, up, clear, text] of output.matchAll(
    // eslint-disable-next-line no-control-regex
    /\u001b\[(\d+)A|(\u001b\[J)|([^\u001b]+)/g,
  )) {
    if (up !== undefined) row -= Number(up)
    if (clear !== undefined) lines.splice(row, lines.length, '')
    for (const character of text ?? '') {
      if (character === '\n') lines[++row] ??= ''
      else if (character !== '\r') lines[row] += character
    }
  }
  return lines
}

function record(terminal: Partial<TextStream> = {}): { stream: TextStream; output: () => string } {
  let written = ''
  const stream = { isTTY: true, columns: 20, rows: 10, ...terminal }
  return {
    stream: { ...stream, write: (text: string) => (written += text) },
    output: () => written,
  }
}

describe('a status block', () => {
  test('is redrawn in place on a terminal', () => {
    const { stream, output } = record()
    const block = createStatusBlock(stream)
    block.draw(['one', 'two', 'three'])
    block.draw(['four'])
    expect(screenOf(output())).toEqual(['four', ''])
  })

  test('stays below lines that are printed', () => {
    const { stream, output } = record()
    const block = createStatusBlock(stream)
    block.draw(['step 1', 'loss'])
    block.print('joined')
    block.draw(['step 2', 'loss'])
    block.end()
    block.draw(['next'])
    expect(screenOf(output())).toEqual(['joined', 'step 2', 'loss', 'next', ''])
  })

  test('is cut to the screen, so that it can be erased', () => {
    const { stream, output } = record({ columns: 8, rows: 4 })
    const block = createStatusBlock(stream)
    block.draw(['a line longer than the screen', '2', '3', '4', '5'])
    expect(screenOf(output())).toEqual(['a line …', '2', '3', ''])
  })

  test('is left out where there is no terminal, plain lines are not', () => {
    const { stream, output } = record({ isTTY: false })
    const block = createStatusBlock(stream)
    block.draw(['step 1'])
    block.print('joined')
    block.end()
    expect(output()).toBe('joined\n')
  })
})
