import { describe, expect, test } from 'vitest'
import { free, markExclusive } from '../../../src/net/received-memory.ts'

describe('received memory', () => {
  test('that was marked is freed, once', () => {
    const bytes = new Uint8Array(16_384).fill(1)
    markExclusive(bytes)
    free(bytes)
    expect(bytes.length).toBe(0)
    free(bytes)
  })

  test('that nobody marked stays', () => {
    const bytes = new Uint8Array(16_384).fill(1)
    free(bytes)
    expect(bytes.length).toBe(16_384)
  })

  test('stays while a part of it may be looked at: only who has all bytes frees it', () => {
    const bytes = new Uint8Array(16_384).fill(1)
    markExclusive(bytes)
    free(bytes.subarray(0, 16_383))
    free(bytes.subarray(1))
    expect(bytes.length).toBe(16_384)
    free(bytes.subarray())
    expect(bytes.length).toBe(0)
  })

  test('of a pool is never marked', () => {
    const pool = new ArrayBuffer(65_536)
    const bytes = new Uint8Array(pool, 0, 16_384).fill(1)
    markExclusive(bytes)
    free(bytes)
    expect(bytes[0]).toBe(1)
  })

  test('shared with other threads stays', () => {
    const bytes = new Uint8Array(new SharedArrayBuffer(16_384))
    markExclusive(bytes)
    free(bytes)
    expect(bytes.length).toBe(16_384)
  })
})
