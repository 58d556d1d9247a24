/** Two hosts of one LAN that know each other by their ids only: the direct path stays on the LAN. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { z } from 'zod'
import { startHost, startPublics, untilReady } from './host.ts'
import type { Host } from './host.ts'
import { openLab } from './lab.ts'

export interface OneLan {
  directMs: number
  address: string
}

const directSchema = z.object({ ms: z.number() })
const linksSchema = z.array(z.object({ direct: z.boolean(), address: z.string() }))

/** Rejects when there is no direct path, or one that leaves the LAN. */
export async function runOneLan(kept: string | undefined): Promise<OneLan> {
  const folder = kept ?? mkdtempSync(join(tmpdir(), 'shoal-nat-'))
  const lab = openLab({ lans: ['symmetric'], publics: 2, hosts: 2 })
  const started: Host[] = []
  try {
    const { publics, bootstrap } = await startPublics(lab, folder, 2)
    started.push(...publics)
    const settings = [`bootstrap=${bootstrap}`]
    const [first, second] = await Promise.all([
      startHost(lab, 'h1', folder, settings),
      startHost(lab, 'h1b', folder, settings),
    ])
    started.push(first, second)
    await Promise.all([untilReady(first, 'symmetric'), untilReady(second, 'symmetric')])
    const peer = second.peerId
    const direct = first.ask({ do: 'untilDirect', peer, waitMs: 20_000 })
    await first.ask({ do: 'call', peer, bytes: 64 << 10 })
    const { ms: directMs } = directSchema.parse(await direct)
    const links = linksSchema.parse(await first.ask({ do: 'links', peer }))
    const address = links.find((link) => link.direct)?.address ?? 'none'
    if (!address.startsWith('/ip4/192.168.')) throw new Error(`the path is ${address}`)
    return { directMs, address }
  } finally {
    await Promise.all(started.map((host) => host.end()))
    lab.close()
    if (kept === undefined) rmSync(folder, { recursive: true, force: true })
  }
}
