/** Commands about the network: `peers` and `doctor`. */
import type { PathRecord } from '../../src/net/path-history.ts'
import { ROUTES } from '../api/routes.ts'
import { bytes, duration, table } from './format.ts'
import type { Command } from './session.ts'

const MARKS = { ok: 'ok', hint: 'note', problem: 'PROBLEM' } as const

export const NETWORK_COMMANDS: readonly Command[] = [
  {
    name: 'peers',
    summary: 'list open connections and how they came about, or dial a peer',
    examples: ['peers', 'peers --connect /ip4/192.0.2.1/tcp/4010'],
    options: [{ flags: '--connect <multiaddr>', summary: 'dial this peer first' }],
    async run(session) {
      const { signal } = session.terminal
      const client = session.daemon()
      const address = session.text('connect')
      if (address !== undefined) await client.call(ROUTES.connect, { address }, { signal })
      const listed = await client.call(ROUTES.peers, {}, { signal })
      session.emit(listed, () =>
        table(
          [
            'PEER',
            'TRANSPORT',
            'PATH',
            'DIRECTION',
            'RTT',
            'UP',
            'DOWN',
            'AGE',
            'PATHS',
            'ADDRESS',
          ],
          listed.peers.map((link) => [
            link.peer,
            link.transport,
            link.direct ? 'direct' : 'relayed',
            link.direction,
            link.rttMs === null ? '-' : duration(link.rttMs),
            `${bytes(link.sentBytesPerSecond)}/s`,
            `${bytes(link.receivedBytesPerSecond)}/s`,
            duration(link.ageMs),
            pathsText(link.history),
            link.address,
          ]),
          'no peers: connections are tried in the background',
        ),
      )
    },
  },
  {
    name: 'doctor',
    summary:
      'look at how this node is connected: NAT, ports, relays, clock, bandwidth, with advice',
    examples: ['doctor', 'doctor --peer 12D3KooW…', 'doctor --json'],
    options: [
      { flags: '--peer <id>', summary: 'measure bandwidth to this peer (default the nearest)' },
    ],
    async run(session) {
      session.note('asking neighbours and measuring, some seconds')
      const { signal } = session.terminal
      const peer = session.text('peer')
      const diagnosis = await session.daemon().call(ROUTES.diagnose, { peer }, { signal })
      session.emit(diagnosis, () =>
        diagnosis.advice.flatMap(({ subject, level, finding, advice }) => [
          `${MARKS[level].padEnd(8)} ${subject}: ${finding}`,
          `         ${advice}`,
        ]),
      )
    },
  },
]

/** `relayed > tcp`: what led to the peer, in turn; what is gone in brackets. */
function pathsText(history: readonly PathRecord[]): string {
  const names = history.map(({ direct, transport, closedAgoMs }) => {
    const name = direct ? transport : 'relayed'
    return closedAgoMs === null ? name : `(${name})`
  })
  return names.join(' > ')
}
