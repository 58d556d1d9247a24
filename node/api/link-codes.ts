/**
 * Codes in links to the dashboard: whoever brings one first, and soon, gets the token.
 *
 * A link is seen by others: in the list of processes when a browser is started with it, in a terminal's scrollback, in
 * a browser's history. The token itself is in none of them.
 */
import { createHash, randomBytes } from 'node:crypto'
import type { Clock } from '../../src/clock.ts'
import { ShoalError } from '../../src/errors.ts'
import { DEADLINES, LIMITS } from '../../src/limits.ts'

const CODE_BYTES = 32

export interface LinkCodes {
  /** A new code. Beyond `LIMITS.linkCodes` that nobody has brought the oldest is void. */
  issue(): string
  /** Throws `unauthorized` for one that is wrong, used or too old, `limit_exceeded` after too many of them. */
  redeem(code: string): void
}

export function createLinkCodes(clock: Clock): LinkCodes {
  /** When each was issued, by its hash: a look-up by the code itself would tell by its time how near a guess is. */
  const issued = new Map<string, number>()
  let wrong: number[] = []
  return {
    issue() {
      const code = randomBytes(CODE_BYTES).toString('base64url')
      issued.set(hashOf(code), clock.now())
      const [oldest] = issued.keys()
      if (issued.size > LIMITS.linkCodes && oldest !== undefined) issued.delete(oldest)
      return code
    },
    redeem(code) {
      const nowMs = clock.now()
      wrong = wrong.filter((atMs) => nowMs - atMs < DEADLINES.linkGuessesMs)
      if (wrong.length >= LIMITS.linkGuesses) {
        throw new ShoalError(
          'limit_exceeded',
          'too many wrong links to the dashboard: wait a minute, or paste the token',
        )
      }
      const hash = hashOf(code)
      const issuedMs = issued.get(hash)
      issued.delete(hash)
      if (issuedMs !== undefined && nowMs - issuedMs < DEADLINES.linkCodeMs) return
      wrong.push(nowMs)
      throw new ShoalError(
        'unauthorized',
        'this link has been used, or is too old: `shoal dashboard` makes another',
      )
    },
  }
}

function hashOf(code: string): string {
  return createHash('sha256').update(code).digest('hex')
}
