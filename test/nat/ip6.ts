/**
 * Two hosts with global IPv6 addresses behind routers that let nothing in unasked, and IPv4 by symmetric NATs or not at
 * all: what is direct between them goes by IPv6.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { z } from 'zod'
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
const directSchema = z.object({ transport: z.string(), ms: z.number() })
const linksSchema = z.array(z.object({ direct: z.boolean(), address: z.string() }))

const FIREWALL = `table ip6 firewall {
  chain forwarding { type filter hook forward priority filter; policy accept;
    ct state established,related accept
    iifname "wan" drop
  }
}`

/** Rejects when there is no direct path, or one by IPv4. */
export async function runIp6(hasIp4: boolean, kept: string | undefined): Promise<Ip6> {
  const folder = kept ?? mkdtempSync(join(tmpdir(), 'shoal-nat-'))
  const lab = openLab({ lans: ['symmetric', 'symmetric'], publics: PUBLICS.length })
  const started: Host[] = []
  try {
    addIp6(lab, hasIp4)
    const { publics } = await startPublics(lab, folder, PUBLICS.length)
    started.push(...publics)
    const bootstrap = publics
      .map(({ peerId }, index) => `/ip6/2a0f:1::${index + 1}:11/tcp/4010/p2p/${peerId}`)
      .join(',')
    const [first, second] = await Promise.all([
      startHost(lab, 'h1', folder, [`bootstrap=${bootstrap}`]),
      startHost(lab, 'h2', folder, [`bootstrap=${bootstrap}`]),
    ])
    started.push(first, second)
    await Promise.all([untilReady(first, 'symmetric'), untilReady(second, 'symmetric')])
    const peer = second.peerId
    const direct = first.ask({ do: 'untilDirect', peer, waitMs: 40_000 })
    await first.ask({ do: 'call', peer, bytes: 64 << 10 })
    const { transport, ms: directMs } = directSchema.parse(await direct)
    await first.ask({ do: 'call', peer, bytes: 64 << 10 })
    const links = linksSchema.parse(await first.ask({ do: 'links', peer }))
    const address = links.find((link) => link.direct)?.address ?? 'none'
    if (!address.startsWith('/ip6/')) throw new Error(`the path is ${address}`)
    return { directMs, transport, address }
  } finally {
    await Promise.all(started.map((host) => host.end()))
    lab.close()
    if (kept === undefined) rmSync(folder, { recursive: true, force: true })
  }
}

/** 2a0f:1::/64 is the internet, 2a0f:1:0:<i>::/64 the LAN behind router i. */
function addIp6(lab: Lab, hasIp4: boolean): void {
  const all = ['all', 'default'].map((which) => `net.ipv6.conf.${which}.disable_ipv6=0`)
  const enable = (node: string): void => lab.run(node, ['sysctl', '-qw', ...all])
  const address = (node: string, text: string, device: string): void =>
    lab.run(node, ['ip', '-6', 'addr', 'add', `${text}/64`, 'dev', device, 'nodad'])
  const route = (node: string, to: string, by: string): void =>
    lab.run(node, ['ip', '-6', 'route', 'add', to, 'via', by])
  for (const index of PUBLICS) {
    enable(`pub${index}`)
    address(`pub${index}`, `2a0f:1::${index}:11`, 'eth0')
  }
  for (const lan of LANS) {
    enable(`r${lan}`)
    enable(`h${lan}`)
    lab.run(`r${lan}`, ['sysctl', '-qw', 'net.ipv6.conf.all.forwarding=1'])
    address(`r${lan}`, `2a0f:1::1:${lan}`, 'wan')
    address(`r${lan}`, `2a0f:1:0:${lan}::1`, 'lan')
    address(`h${lan}`, `2a0f:1:0:${lan}::10`, 'eth0')
    route(`h${lan}`, 'default', `2a0f:1:0:${lan}::1`)
    lab.run(`r${lan}`, ['nft', FIREWALL])
    if (!hasIp4) lab.run(`h${lan}`, ['ip', '-4', 'route', 'del', 'default'])
  }
  for (const lan of LANS) {
    const others = [...PUBLICS.map((index) => `pub${index}`), ...LANS.map((other) => `r${other}`)]
    for (const node of others.filter((other) => other !== `r${lan}`)) {
      route(node, `2a0f:1:0:${lan}::/64`, `2a0f:1::1:${lan}`)
    }
  }
}
