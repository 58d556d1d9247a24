/** A router that forwards ports when it is asked to (UPnP): its host is dialled, by one behind a symmetric NAT too. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { z } from 'zod'
import { systemClock } from '../../src/clock.ts'
import { startHosts, startPublics, untilReady } from './host.ts'
import type { Host } from './host.ts'
import { openLab } from './lab.ts'

const LANS = ['portrestricted', 'symmetric'] as const
const MAPPED_MS = 90_000

export interface Forwarded {
  /** Until others had dialled the host behind the router. */
  mappedMs: number
  transport: string
  directMs: number
}

const statusSchema = z.object({ reachability: z.string() })
const directSchema = z.object({ transport: z.string(), ms: z.number() })

/** Rejects when the host does not get reachable in time. */
export async function runPortForwarding(kept: string | undefined): Promise<Forwarded> {
  const folder = kept ?? mkdtempSync(join(tmpdir(), 'shoal-nat-'))
  const lab = openLab({ lans: LANS, publics: 2 })
  const started: Host[] = []
  try {
    lab.upnp(1)
    const { publics, bootstrap } = await startPublics(lab, folder, 2)
    started.push(...publics)
    const startedMs = performance.now()
    const [home, other] = await startHosts(lab, LANS, folder, bootstrap)
    if (home === undefined || other === undefined) throw new Error('two hosts')
    started.push(home, other)
    const limit = systemClock.deadline(MAPPED_MS, 'a forwarded port')
    for (;;) {
      const { reachability } = statusSchema.parse(await home.ask({ do: 'status' }))
      if (reachability === 'mapped') break
      await systemClock.sleep(250, limit)
    }
    const mappedMs = performance.now() - startedMs
    await untilReady(other, LANS[1])
    const peer = home.peerId
    const direct = other.ask({ do: 'untilDirect', peer, waitMs: 20_000 })
    await other.ask({ do: 'call', peer, bytes: 64 << 10 })
    const { transport, ms: directMs } = directSchema.parse(await direct)
    return { mappedMs, transport, directMs }
  } finally {
    await Promise.all(started.map((host) => host.end()))
    lab.close()
    if (kept === undefined) rmSync(folder, { recursive: true, force: true })
  }
}
