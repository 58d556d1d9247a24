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
  issue(options: { isForOwnUser: boolean }): string
  /**
   * Throws `unauthorized` for one that is wrong, used or too old, `forbidden` for one that is not for who brings it,
   * `limit_exceeded` after too many wrong ones. `isOwnUser`: whether this process's user brings it.
   */
  redeem(code: string, isOwnUser: boolean): void
}

interface Issued {
  atMs: number
  isForOwnUser: boolean
}

export function createLinkCodes(clock: Clock): LinkCodes {
  /** By hash: a look-up by the code itself would tell by its time how near a guess is. */
  const issued = new Map<string, Issued>()
  // What others guess must not keep the own user out.
  const wrong: Record<'own' | 'others', number[]> = { own: [], others: [] }

  function checkGuesses(who: 'own' | 'others', nowMs: number): void {
    wrong[who] = wrong[who].filter((atMs) => nowMs - atMs < DEADLINES.linkGuessesMs)
    if (wrong[who].length < LIMITS.linkGuesses) return
    throw new ShoalError(
      'limit_exceeded',
      'too many wrong links to the dashboard: wait a minute, or paste the token',
    )
  }

  return {
    issue({ isForOwnUser }) {
      const code = randomBytes(CODE_BYTES).toString('base64url')
      issued.set(hashOf(code), { atMs: clock.now(), isForOwnUser })
      const [oldest] = issued.keys()
      if (issued.size > LIMITS.linkCodes && oldest !== undefined) issued.delete(oldest)
      return code
    },
    redeem(code, isOwnUser) {
      const nowMs = clock.now()
      const who = isOwnUser ? 'own' : 'others'
      checkGuesses(who, nowMs)
      const hash = hashOf(code)
      const found = issued.get(hash)
      if (found?.isForOwnUser === true && !isOwnUser) {
        throw new ShoalError('forbidden', 'this link is for the user whose daemon it is')
      }
      issued.delete(hash)
      if (found !== undefined && nowMs - found.atMs < DEADLINES.linkCodeMs) return
      wrong[who].push(nowMs)
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
