import { expect, test } from 'vitest'
import { createLinkCodes } from '../../../../node/api/link-codes.ts'
import { DEADLINES, LIMITS } from '../../../../src/limits.ts'
import { createManualClock } from '../../../manual-clock.ts'

const ANY = { isForOwnUser: false }
const WRONG = expect.objectContaining({ code: 'unauthorized' })
const TOO_MANY = expect.objectContaining({ code: 'limit_exceeded' })

test('a code works once', () => {
  const codes = createLinkCodes(createManualClock())
  const [first, second] = [codes.issue(ANY), codes.issue(ANY)]
  expect(first).toMatch(/^[\w-]{43}$/)
  expect(second).not.toBe(first)
  codes.redeem(first, true)
  expect(() => codes.redeem(first, true)).toThrow(WRONG)
  codes.redeem(second, true)
})

test('a code works for two minutes', async () => {
  const clock = createManualClock()
  const codes = createLinkCodes(clock)
  const [first, second] = [codes.issue(ANY), codes.issue(ANY)]
  await clock.advance(DEADLINES.linkCodeMs - 1)
  codes.redeem(first, true)
  await clock.advance(1)
  expect(() => codes.redeem(second, true)).toThrow(WRONG)
})

test('of too many codes the oldest is void', () => {
  const codes = createLinkCodes(createManualClock())
  const [oldest = '', next = '', ...others] = Array.from({ length: LIMITS.linkCodes + 1 }, () =>
    codes.issue(ANY),
  )
  expect(() => codes.redeem(oldest, true)).toThrow(WRONG)
  codes.redeem(next, true)
  for (const code of others) codes.redeem(code, true)
})

test('guesses are refused, and after some of them everything is, for a while', async () => {
  const clock = createManualClock()
  const codes = createLinkCodes(clock)
  const code = codes.issue(ANY)
  const guesses = [code.slice(1), `${code}a`, code.toUpperCase(), '', code.slice(0, -1) + '!']
  for (let guess = 0; guess < LIMITS.linkGuesses; guess++) {
    expect(() => codes.redeem(guesses[guess] ?? `guess ${guess}`, true)).toThrow(WRONG)
  }
  expect(() => codes.redeem('one more', true)).toThrow(TOO_MANY)
  expect(() => codes.redeem(code, true)).toThrow(TOO_MANY)
  await clock.advance(DEADLINES.linkGuessesMs)
  codes.redeem(code, true)
})

test('what is for the own user is nothing to another, and is not used up', () => {
  const codes = createLinkCodes(createManualClock())
  const own = codes.issue({ isForOwnUser: true })
  expect(() => codes.redeem(own, false)).toThrow(expect.objectContaining({ code: 'forbidden' }))
  codes.redeem(own, true)
  const any = codes.issue(ANY)
  codes.redeem(any, false)
})

test('guesses of others stop others only', () => {
  const codes = createLinkCodes(createManualClock())
  const code = codes.issue(ANY)
  for (let guess = 0; guess < LIMITS.linkGuesses; guess++) {
    expect(() => codes.redeem(`guess ${guess}`, false)).toThrow(WRONG)
  }
  expect(() => codes.redeem(code, false)).toThrow(TOO_MANY)
  codes.redeem(code, true)
})
