import { expect, test } from 'vitest'
import { ownersIn } from '../../../../node/api/connection-owner.ts'

const HEAD =
  '  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode'
const row = (local: string, remote: string, uid: number): string =>
  `   1: ${local} ${remote} 01 00000000:00000000 00:00000000 00000000  ${uid}        0 5 1 0 20 4 30 10 -1`

test('finds the owner of the other end, and not that of this one', () => {
  const table = [
    HEAD,
    row('0100007F:0FAB', '00000000:0000', 1000),
    row('0100007F:0FAB', '0100007F:D431', 1000),
    row('0100007F:D431', '0100007F:0FAB', 1001),
    row('0100007F:D431', '0100007F:0050', 1002),
    '',
  ].join('\n')
  expect(ownersIn(table, { own: 0x0fab, other: 0xd431 })).toEqual([1001])
  expect(ownersIn(table, { own: 0x0fab, other: 0xd432 })).toEqual([])
})

test('counts whoever has the same ports at another loopback address, or at a mapped one', () => {
  const table = [
    HEAD,
    row('0100007F:D431', '0100007F:0FAB', 1000),
    row('0200007F:D431', '0100007F:0FAB', 1001),
    row('0000000000000000FFFF00000100007F:D431', '0000000000000000FFFF00000100007F:0FAB', 1002),
  ].join('\n')
  expect(ownersIn(table, { own: 0x0fab, other: 0xd431 })).toEqual([1000, 1001, 1002])
})

test('reads nothing into what is no such table', () => {
  for (const text of ['', 'x', HEAD, '1: 2 3', ':: :: ::']) {
    expect(ownersIn(text, { own: 1, other: 2 })).toEqual([])
  }
})
