/** A block of status lines that is redrawn in place on a terminal; elsewhere only plain lines are written. */
import { stripVTControlCharacters } from 'node:util'

/** Introduces a control sequence: `<n>A` moves the cursor n lines up, `J` clears from the cursor to the end of the screen. */
const ESCAPE = '\u001b['

/** Of a terminal, or of any stream that text may go to. */
export interface TextStream {
  write(text: string): unknown
  isTTY?: boolean | undefined
  columns?: number | undefined
  rows?: number | undefined
}

export interface StatusBlock {
  /** Replaces the block. Does nothing when the stream is no terminal. */
  draw(lines: readonly string[]): void
  /** Writes a line that stays, above the block. */
  print(line: string): void
  /** Leaves the block as it is; what is written next comes below. */
  end(): void
}

export function createStatusBlock(stream: TextStream): StatusBlock {
  if (stream.isTTY !== true) {
    return { draw() {}, print: (line) => stream.write(`${line}\n`), end() {} }
  }
  let shown: readonly string[] = []
  const erase = (): void => {
    const up = shown.length === 0 ? '' : `${ESCAPE}${shown.length}A`
    stream.write(`${up}\r${ESCAPE}J`)
  }
  const write = (lines: readonly string[]): void => {
    // A block taller than the screen could not be erased: its top has scrolled away.
    shown = lines.slice(0, Math.max(1, (stream.rows ?? 24) - 1))
    const columns = stream.columns ?? 80
    stream.write(shown.map((line) => `${fit(line, columns)}\n`).join(''))
  }
  return {
    draw(lines) {
      erase()
      write(lines)
    },
    print(line) {
      erase()
      stream.write(`${line}\n`)
      write(shown)
    },
    end() {
      shown = []
    },
  }
}

/** A wrapped line would count as two; cut lines lose their colours. */
function fit(line: string, columns: number): string {
  const plain = stripVTControlCharacters(line)
  return plain.length <= columns ? line : `${plain.slice(0, columns - 1)}…`
}
