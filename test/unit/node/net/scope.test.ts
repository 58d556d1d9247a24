import { multiaddr } from '@multiformats/multiaddr'
import { describe, expect, test } from 'vitest'
import { loadConfig } from '../../../../node/config.ts'
import { scopeOf } from '../../../../node/net/scope.ts'

const OWN = '/ip4/192.0.2.1/tcp/4010'

function scope(...flags: [string, unknown][]) {
  return scopeOf(loadConfig({ env: {}, flags: { bootstrap: OWN, ...Object.fromEntries(flags) } }))
}

describe('the network', () => {
  test('is our own by default', () => {
    expect(scope()).toEqual({ bootstrap: [OWN] })
    expect(scope(['network', 'private'])).toEqual(scope())
  })

  test('may be that of IPFS, through our own peers first', () => {
    const { bootstrap = [], dhtProtocol } = scope(['network', 'public'])
    expect(dhtProtocol).toBe('/ipfs/kad/1.0.0')
    expect(bootstrap[0]).toBe(OWN)
    expect(bootstrap.length).toBeGreaterThan(2)
    for (const address of bootstrap) expect(() => multiaddr(address)).not.toThrow()
  })

  test('may end at the LAN, which nobody serves to the internet', () => {
    expect(scope(['network', 'lan'])).toMatchObject({ isLanOnly: true, bootstrap: [OWN] })
    expect(() => scope(['network', 'lan'], ['public', true])).toThrow('leave one out')
    expect(() => scope(['network', 'wan'])).toThrow('--network')
  })
})
