/**
 * Two hosts with global IPv6 addresses behind routers that let nothing in unasked, and IPv4 by symmetric NATs or not at
 * all: what is direct between them goes by IPv6.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { z } from 'zod'
import { systemClock } from '../../src/clock.ts'
import { startHost, startPublics, untilReady } from './host.ts'
import type { Host } from './host.ts'
import { openLab } from './lab.ts'
import type { Lab } from './lab.ts'

export interface Ip6 {
  directMs: number
  transport: string
  address: string
}

const LANS = [1, 2]
const PUBLICS = [1, 2]
const OPEN_MS = 30_000
const TICK_MS = 250
const statusSchema = z.object({ reachability: z.string(), relays: z.array(z.string()) })
const directSchema = z.object({ transport: z.string(), ms: z.number() })
const linksSchema = z.array(z.object({ direct: z.boolean(), address: z.string() }))

const FIREWALL = `table ip6 firewall {
  chain forwarding { type filter hook forward priority filter; policy accept;
    ct state established,related accept
    iifname "wan" drop
  }
}`

/** What can be got through: `both` kinds, IPv6 alone, or IPv6 which lets everybody in, beside IPv4. */
type Ip6Case = 'both' | 'alone' | 'open'

/** Rejects when there is no direct path, or one by IPv4. */
export async function runIp6(which: 'both' | 'alone', kept: string | undefined): Promise<Ip6> {
  return await inLab(which, kept, async ([first, second]) => {
    const peer = second.peerId
    const direct = first.ask({ do: 'untilDirect', peer, waitMs: 40_000 })
    await first.ask({ do: 'call', peer, bytes: 64 << 10 })
    const { transport, ms: directMs } = directSchema.parse(await direct)
    await first.ask({ do: 'call', peer, bytes: 64 << 10 })
    const links = linksSchema.parse(await first.ask({ do: 'links', peer }))
    const address = links.find((link) => link.direct)?.address ?? 'none'
    if (!address.startsWith('/ip6/')) throw new Error(`the path is ${address}`)
    return { directMs, transport, address }
  })
}

/** Rejects when a host that all can dial by IPv6 is out of reach for one without it. */
export async function runOpenIp6(kept: string | undefined): Promise<{ relays: number }> {
  return await inLab('open', kept, async ([open, other]) => {
    const limit = systemClock.deadline(OPEN_MS, 'being dialled by IPv6, and relays beside')
    let publicMs = 0
    for (;;) {
      const { reachability, relays } = statusSchema.parse(await open.ask({ do: 'status' }))
      publicMs = reachability === 'public' ? publicMs + TICK_MS : 0
      // A node that needs none gives its relays up within a second.
      if (publicMs >= 12 * TICK_MS && relays.length === PUBLICS.length) {
        await other.ask({ do: 'call', peer: open.peerId, bytes: 64 << 10 })
        return { relays: relays.length }
      }
      await systemClock.sleep(TICK_MS, limit)
    }
  })
}

async function inLab<T>(
  which: Ip6Case,
  kept: string | undefined,
  work: (hosts: [Host, Host]) => Promise<T>,
): Promise<T> {
  const folder = kept ?? mkdtempSync(join(tmpdir(), 'shoal-nat-'))
  const lab = openLab({ lans: ['symmetric', 'symmetric'], publics: PUBLICS.length })
  const started: Host[] = []
  try {
    addIp6(lab, which)
    const { publics, bootstrap: byIp4 } = await startPublics(lab, folder, PUBLICS.length)
    started.push(...publics)
    const bootstrap = publics
      .map(({ peerId }, index) => `/ip6/2a0f:1::${index + 1}:11/tcp/4010/p2p/${peerId}`)
      .join(',')
    const [first, second] = await Promise.all([
      startHost(lab, 'h1', folder, [`bootstrap=${bootstrap}`]),
      startHost(lab, 'h2', folder, [`bootstrap=${which === 'open' ? byIp4 : bootstrap}`]),
    ])
    started.push(first, second)
    await Promise.all([untilReady(first, 'symmetric'), untilReady(second, 'symmetric')])
    return await work([first, second])
  } finally {
    await Promise.all(started.map((host) => host.end()))
    lab.close()
    if (kept === undefined) rmSync(folder, { recursive: true, force: true })
  }
}

/** 2a0f:1::/64 is the internet, 2a0f:1:0:<i>::/64 the LAN behind router i. */
function addIp6(lab: Lab, which: Ip6Case): void {
  const all = ['all', 'default'].map((scope) => `net.ipv6.conf.${scope}.disable_ipv6=0`)
  const enable = (node: string): void => lab.run(node, ['sysctl', '-qw', ...all])
  const address = (node: string, text: string, device: string): void =>
    lab.run(node, ['ip', '-6', 'addr', 'add', `${text}/64`, 'dev', device, 'nodad'])
  const route = (node: string, to: string, by: string): void =>
    lab.run(node, ['ip', '-6', 'route', 'add', to, 'via', by])
  for (const index of PUBLICS) {
    enable(`pub${index}`)
    address(`pub${index}`, `2a0f:1::${index}:11`, 'eth0')
  }
  const lans = which === 'open' ? [1] : LANS
  for (const lan of lans) {
    enable(`r${lan}`)
    enable(`h${lan}`)
    lab.run(`r${lan}`, ['sysctl', '-qw', 'net.ipv6.conf.all.forwarding=1'])
    address(`r${lan}`, `2a0f:1::1:${lan}`, 'wan')
    address(`r${lan}`, `2a0f:1:0:${lan}::1`, 'lan')
    address(`h${lan}`, `2a0f:1:0:${lan}::10`, 'eth0')
    route(`h${lan}`, 'default', `2a0f:1:0:${lan}::1`)
    if (which !== 'open') lab.run(`r${lan}`, ['nft', FIREWALL])
    if (which === 'alone') lab.run(`h${lan}`, ['ip', '-4', 'route', 'del', 'default'])
  }
  for (const lan of lans) {
    const others = [...PUBLICS.map((index) => `pub${index}`), ...lans.map((other) => `r${other}`)]
    for (const node of others.filter((other) => other !== `r${lan}`)) {
      route(node, `2a0f:1:0:${lan}::/64`, `2a0f:1::1:${lan}`)
    }
  }
}
