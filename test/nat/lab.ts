/** The NAT laboratory (`natlab.sh`): routers, carriers and hosts as network namespaces of this machine. */
import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const SCRIPT = join(import.meta.dirname, 'natlab.sh')

export const NAT_TYPES = [
  'open',
  'fullcone',
  'restricted',
  'portrestricted',
  'symmetric',
  'udpblocked',
  'webonly',
  'cgnat',
] as const
export type LabNat = (typeof NAT_TYPES)[number]

export interface LabOptions {
  /** One LAN each, with one host: `h1` behind the first. */
  lans: readonly LabNat[]
  publics: number
  /** One way, per crossing of the "internet". */
  delayMs?: number
  /** Two hosts on each LAN: `h1b` beside `h1`. */
  hosts?: 1 | 2
}

export interface Lab {
  /** The command that runs `argv` on a node. */
  on(node: string, argv: readonly string[]): [file: string, argv: string[]]
  setNat(lan: number, type: LabNat): void
  link(lan: number, state: 'up' | 'down'): void
  /** Starts miniupnpd on the router. */
  upnp(lan: number): void
  run(node: string, argv: readonly string[]): void
  close(): void
}

/** Why there can be no laboratory here; undefined when there can. */
export function whyNoLab(): string | undefined {
  if (process.platform !== 'linux') return 'network namespaces need Linux'
  if (process.getuid?.() !== 0) return 'network namespaces need root'
  const missing = ['ip', 'nft'].filter(
    (tool) => spawnSync(tool, ['-V'], { stdio: 'ignore' }).error !== undefined,
  )
  if (missing.length > 0) return `${missing.join(' and ')} not installed (iproute2, nftables)`
  const probe = `nltest${process.pid}`
  const made = spawnSync('ip', ['netns', 'add', probe], { encoding: 'utf8' })
  if (made.status !== 0) return `no network namespaces: ${made.stderr.trim()}`
  const rules = spawnSync('ip', ['netns', 'exec', probe, 'nft', 'add', 'table', 'ip', 'nat'])
  const nat = ['add', 'chain', 'ip', 'nat', 'c', '{ type nat hook postrouting priority 0; }']
  const hook = spawnSync('ip', ['netns', 'exec', probe, 'nft', ...nat], { encoding: 'utf8' })
  spawnSync('ip', ['netns', 'del', probe])
  return rules.status === 0 && hook.status === 0 ? undefined : `no NAT: ${hook.stderr.trim()}`
}

/** Of programs that were killed before they could close theirs. */
function closeOrphans(): void {
  const { stdout } = spawnSync('ip', ['netns', 'list'], { encoding: 'utf8' })
  const orphans = [...stdout.matchAll(/^n(\d+)-\S+/gm)].filter(
    ([, pid]) => !existsSync(`/proc/${pid}`),
  )
  for (const [name] of orphans) spawnSync('ip', ['netns', 'del', name])
}

/** Whether routers can offer UPnP here. */
export function hasUpnp(): boolean {
  return spawnSync('miniupnpd', ['--version'], { stdio: 'ignore' }).error === undefined
}

export function openLab({ lans, publics, delayMs = 0, hosts = 1 }: LabOptions): Lab {
  closeOrphans()
  const state = mkdtempSync(join(tmpdir(), 'natlab-'))
  const prefix = `n${process.pid}-`
  const env = { ...process.env, NATLAB_PREFIX: prefix, NATLAB_STATE: join(state, 'lab') }
  const natlab = (...argv: string[]): void => {
    const { status, stderr } = spawnSync(SCRIPT, argv, { env, encoding: 'utf8' })
    if (status !== 0) throw new Error(`natlab.sh ${argv.join(' ')}: ${stderr}`)
  }
  const close = (): void => {
    natlab('down')
    rmSync(state, { recursive: true, force: true })
  }
  const size = ['--pubs', String(publics), '--hosts', String(hosts), '--delay', String(delayMs)]
  try {
    natlab('up', '--lans', lans.join(' '), ...size)
  } catch (thrown) {
    close()
    throw thrown
  }
  const on: Lab['on'] = (node, argv) => ['ip', ['netns', 'exec', `${prefix}${node}`, ...argv]]
  return {
    on,
    close,
    setNat: (lan, type) => natlab('nat', String(lan), type),
    link: (lan, to) => natlab('link', String(lan), to),
    upnp: (lan) => natlab('upnp', String(lan), 'on'),
    run(node, argv) {
      const [file, rest] = on(node, argv)
      const { status, stderr } = spawnSync(file, rest, { encoding: 'utf8' })
      if (status !== 0) throw new Error(`${argv.join(' ')} on ${node}: ${stderr}`)
    },
  }
}
