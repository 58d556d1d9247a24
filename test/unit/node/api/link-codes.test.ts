import { expect, test } from 'vitest'
import { createLinkCodes } from '../../../../node/api/link-codes.ts'
import { DEADLINES, LIMITS } from '../../../../src/limits.ts'
import { createManualClock } from '../../../manual-clock.ts'

const WRONG = expect.objectContaining({ code: 'unauthorized' })
const TOO_MANY = expect.objectContaining({ code: 'limit_exceeded' })

test('a code works once', () => {
  const codes = createLinkCodes(createManualClock())
  const [first, second] = [codes.issue(), codes.issue()]
  expect(first).toMatch(/^[\w-]{43}$/)
  expect(second).not.toBe(first)
  codes.redeem(first)
  expect(() => codes.redeem(first)).toThrow(WRONG)
  codes.redeem(second)
})

test('a code works for two minutes', async () => {
  const clock = createManualClock()
  const codes = createLinkCodes(clock)
  const [first, second] = [codes.issue(), codes.issue()]
  await clock.advance(DEADLINES.linkCodeMs - 1)
  codes.redeem(first)
  await clock.advance(1)
  expect(() => codes.redeem(second)).toThrow(WRONG)
})

test('of too many codes the oldest is void', () => {
  const codes = createLinkCodes(createManualClock())
  const [oldest = '', next = '', ...others] = Array.from({ length: LIMITS.linkCodes + 1 }, () =>
    codes.issue(),
  )
  expect(() => codes.redeem(oldest)).toThrow(WRONG)
  codes.redeem(next)
  for (const code of others) codes.redeem(code)
})

test('guesses are refused, and after some of them everything is, for a while', async () => {
  const clock = createManualClock()
  const codes = createLinkCodes(clock)
  const code = codes.issue()
  const guesses = [code.slice(1), `${code}a`, code.toUpperCase(), '', code.slice(0, -1) + '!']
  for (let guess = 0; guess < LIMITS.linkGuesses; guess++) {
    expect(() => codes.redeem(guesses[guess] ?? `guess ${guess}`)).toThrow(WRONG)
  }
  expect(() => codes.redeem('one more')).toThrow(TOO_MANY)
  expect(() => codes.redeem(code)).toThrow(TOO_MANY)
  await clock.advance(DEADLINES.linkGuessesMs)
  codes.redeem(code)
})
