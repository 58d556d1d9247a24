/** Commands about this node: `status`, `shutdown`, `version`. */
import type { NodeStatus } from '../../src/node.ts'
import { ROUTES } from '../api/routes.ts'
import { VERSION } from '../version.ts'
import { bytes, duration, fields } from './format.ts'
import type { Command } from './session.ts'

export const NODE_COMMANDS: readonly Command[] = [
  {
    name: 'status',
    summary: 'show identity, addresses and state of this node',
    examples: ['status', 'status --json'],
    async run(session) {
      const { signal } = session.terminal
      const status = await session.daemon().call(ROUTES.node, {}, { signal })
      session.emit(status, () =>
        fields([
          ['peer id', status.peerId],
          ...status.addresses.map((address) => ['address', address] as const),
          ['reachability', status.reachability],
          ['NAT', status.nat],
          ...status.relays.map((relay) => ['relay', relay] as const),
          ...relayingFields(status.relaying),
          ['peers', String(status.links)],
          ['runs', String(status.runs)],
          ['engine', status.engine],
          ['local API', status.apiUrl],
          ['data folder', status.dataDir],
          ['up for', duration(status.uptimeMs)],
          ['version', `${status.version} (process ${status.pid})`],
        ]),
      )
    },
  },
  {
    name: 'shutdown',
    summary: 'stop the daemon cleanly',
    examples: ['shutdown'],
    async run(session) {
      const { signal } = session.terminal
      const answer = await session.daemon().call(ROUTES.shutdown, {}, { signal })
      session.emit(answer, () => ['the daemon is stopping'])
    },
  },
  {
    name: 'version',
    summary: 'print the version',
    examples: ['version'],
    async run(session) {
      const version = { version: VERSION, node: process.version }
      session.emit(version, () => [`shoal ${version.version} (Node ${version.node})`])
    },
  },
]

/** What a public node does for others, and how far it goes. */
function relayingFields(relaying: NodeStatus['relaying']): (readonly [string, string])[] {
  if (relaying === null) return []
  const { limits, use } = relaying
  const share = (used: number, limit: number): string => `${used} of ${limit}`
  return [
    ['relays for others', `${share(use.reservations, limits.reservations)} peers`],
    ['', `${share(use.circuits, limits.circuits)} connections, ${bytes(use.bytes)} so far`],
    [
      '',
      `each at most ${bytes(limits.circuitBytes)} in ${duration(limits.circuitMs)}, ` +
        `together ${bytes(limits.bytesPerSecond)}/s`,
    ],
  ]
}
