/**
 * All figures of a node in the Prometheus text format 0.0.4.
 *
 * Counters are those of `src/metrics.ts`; the rest is read from the node when it is asked. Labels are closed sets, or the
 * ids of this node's runs, which are at most `LIMITS.activeRuns`; never peer ids.
 */
import { METRICS, labelOf } from '../../src/metrics.ts'
import type { Link } from '../../src/net/network.ts'
import type { NodeStatus, ShoalNode } from '../../src/node.ts'
import { RUN_STATUSES, type RunView } from '../../src/run/view.ts'
import { PEER_STATUSES } from '../../src/state/record.ts'
import { VERSION } from '../version.ts'

type Labels = Readonly<Record<string, string>>
/** What is not a number is left out: there is no such figure yet. */
type Sample = readonly [value: number | null, labels?: Labels]

interface Family {
  name: string
  help: string
  kind: 'counter' | 'gauge'
  samples: readonly Sample[]
}

export function prometheusText(node: ShoalNode): string {
  const status = node.status()
  const families = [
    ...counterFamilies(status.counters),
    ...nodeFamilies(status),
    ...linkFamilies(node.peers()),
    ...runFamilies(node.runs()),
    ...memberFamilies(node.runs()),
    ...processFamilies(),
  ]
  return families.flatMap(familyLines).join('')
}

function familyLines({ name, help, kind, samples }: Family): string[] {
  const present = samples.filter(([value]) => Number.isFinite(value))
  if (present.length === 0) return []
  return [
    `# HELP ${name} ${help}\n`,
    `# TYPE ${name} ${kind}\n`,
    ...present.map(([value, labels]) => `${name}${labelText(labels)} ${String(value)}\n`),
  ]
}

function labelText(labels: Labels = {}): string {
  const pairs = Object.entries(labels).map(([name, value]) => `${name}="${escaped(value)}"`)
  return pairs.length === 0 ? '' : `{${pairs.join(',')}}`
}

function escaped(value: string): string {
  return value.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n')
}

const gauge = (name: string, help: string, ...samples: Sample[]): Family => ({
  name: `shoal_${name}`,
  help,
  kind: 'gauge',
  samples,
})
const counter = (name: string, help: string, ...samples: Sample[]): Family => ({
  ...gauge(name, help, ...samples),
  kind: 'counter',
})

/** `counters` as `Metrics.snapshot` names them: `name` or `name{label}`. */
function counterFamilies(counters: Readonly<Record<string, number>>): Family[] {
  return Object.entries(METRICS).map(([name, help]) => {
    const label = labelOf(help)
    const samples = Object.entries(counters).flatMap(([key, value]): Sample[] => {
      if (key === name) return [[value]]
      if (!key.startsWith(`${name}{`)) return []
      return [[value, { [label ?? 'label']: key.slice(name.length + 1, -1) }]]
    })
    return counter(name, help, ...(samples.length > 0 || label ? samples : [zero]))
  })
}

const zero: Sample = [0]

function nodeFamilies(status: NodeStatus): Family[] {
  const { engine, reachability, nat, relays, relaying, links, runs, uptimeMs, addresses } = status
  return [
    gauge('node_info', 'version and state of the node', [
      1,
      { version: VERSION, engine, reachability, nat },
    ]),
    gauge('uptime_seconds', 'time since the node started', [uptimeMs / 1000]),
    gauge('addresses', 'addresses told to peers', [addresses.length]),
    gauge('connections', 'open connections', [links]),
    gauge('relays', 'relays through which this node can be reached', [relays.length]),
    gauge('runs', 'runs that this node takes part in', [runs]),
    ...(relaying === null
      ? []
      : [
          gauge('relay_reservations', 'peers reachable through this node', [
            relaying.use.reservations,
          ]),
          gauge('relay_circuits', 'connections carried for others now', [relaying.use.circuits]),
        ]),
  ]
}

function linkFamilies(links: readonly Link[]): Family[] {
  const kinds = Map.groupBy(links, ({ direct, transport }) => `${String(direct)} ${transport}`)
  const counts = [...kinds.values()].map((same): Sample => {
    const [first] = same
    const path = first?.direct === true ? 'direct' : 'relayed'
    return [same.length, { path, transport: first?.transport ?? '' }]
  })
  const sum = (of: (link: Link) => number): number =>
    links.reduce((total, link) => total + of(link), 0)
  const rtts = links.flatMap(({ rttMs }) => rttMs ?? []).sort((a, b) => a - b)
  const rtt = (share: number, quantile: string): Sample => {
    const ms = rtts[Math.round(share * (rtts.length - 1))]
    return [ms === undefined ? null : ms / 1000, { quantile }]
  }
  return [
    gauge('links', 'open connections by path and transport', ...counts),
    gauge('links_sent_bytes_per_second', 'bytes sent over all connections now', [
      sum((link) => link.sentBytesPerSecond),
    ]),
    gauge('links_received_bytes_per_second', 'bytes received over all connections now', [
      sum((link) => link.receivedBytesPerSecond),
    ]),
    gauge(
      'link_rtt_seconds',
      'round-trip time to connected peers',
      rtt(0, '0'),
      rtt(0.5, '0.5'),
      rtt(1, '1'),
    ),
  ]
}

/** Names of figures of a run, with what they are; a null is a figure that there is not yet. */
const RUN_GAUGES: readonly [name: string, help: string, of: (run: RunView) => number | null][] = [
  ['run_parameters', 'elements of the model', (run) => run.parameters],
  ['run_outer_steps', 'outer steps that the run will have', (run) => run.outerSteps],
  ['run_outer_step', 'completed outer steps', (run) => run.outerStep],
  ['run_inner_steps', 'inner steps of an outer step', (run) => run.innerSteps],
  ['run_inner_step', 'inner steps done of this outer step', (run) => run.innerStep],
  ['run_loss', 'training loss, nats per token', (run) => run.loss],
  ['run_loss_start', 'training loss of the first outer step', (run) => run.lossStart],
  ['run_validation_loss', 'validation loss, nats per token', (run) => run.validationLoss],
  ['run_tokens_per_second', 'tokens that this node trains on', (run) => run.tokensPerSecond],
  ['run_consensus_distance', 'relative distance of the replicas', (run) => run.consensusDistance],
  ['run_wait_share', 'part of the time in which compute waited', (run) => run.waitShare],
  ['run_checkpoints', 'checkpoints that this node holds', (run) => run.checkpoints.length],
  [
    'run_checkpoint_outer_step',
    'outer step of the newest checkpoint',
    (run) => run.checkpoints.at(-1)?.outerStep ?? null,
  ],
  ['run_board_entries', "entries of the admins' board", (run) => Object.keys(run.board).length],
  [
    'run_round_duration_seconds',
    'time of the last round',
    (run) => (run.round === null ? null : run.round.durationMs / 1000),
  ],
  [
    'run_round_partners',
    'peers averaged with in the last round',
    (run) => run.round?.partners.length ?? null,
  ],
  ['run_round_sent_bytes', 'sent in the last round', (run) => run.round?.bytesSent ?? null],
  [
    'run_round_received_bytes',
    'received in the last round',
    (run) => run.round?.bytesReceived ?? null,
  ],
]

function runFamilies(runs: readonly RunView[]): Family[] {
  const of = (figure: (run: RunView) => number | null): Sample[] =>
    runs.map((run) => [figure(run), { run: run.id }])
  return [
    gauge(
      'run_info',
      'what a run is',
      ...runs.map(({ id, name, rule }): Sample => [1, { run: id, name, rule }]),
    ),
    gauge(
      'run_status',
      '1 for the status that the run has on this node',
      ...runs.flatMap(({ id, status }) =>
        RUN_STATUSES.map((known): Sample => [known === status ? 1 : 0, { run: id, status: known }]),
      ),
    ),
    ...RUN_GAUGES.map(([name, help, figure]) => gauge(name, help, ...of(figure))),
    counter('run_tokens_total', 'tokens that this node trained on', ...of((run) => run.tokens)),
    counter('run_sent_bytes_total', 'served to partners', ...of((run) => run.bytesSent)),
    counter('run_received_bytes_total', 'pulled from partners', ...of((run) => run.bytesReceived)),
    counter(
      'run_rounds_total',
      'rounds ended, by outcome',
      ...runs.flatMap(({ id, rounds }) =>
        Object.entries(rounds).map(([outcome, count]): Sample => [count, { run: id, outcome }]),
      ),
    ),
  ]
}

/** What members tell of themselves, over all of them: peer ids are no labels. */
function memberFamilies(runs: readonly RunView[]): Family[] {
  const spread = (of: (member: RunView['members'][number]) => number | null): Sample[] =>
    runs.flatMap(({ id, members }) => {
      const values = members.flatMap((member) => of(member) ?? []).sort((a, b) => a - b)
      return [0, 0.5, 1].map((share): Sample => [
        values[Math.round(share * (values.length - 1))] ?? null,
        { run: id, quantile: String(share) },
      ])
    })
  return [
    gauge(
      'run_members',
      'members of the run, by status',
      ...runs.flatMap(({ id, members }) =>
        PEER_STATUSES.map((status): Sample => [
          members.filter((member) => member.status === status).length,
          { run: id, status },
        ]),
      ),
    ),
    gauge(
      'run_members_tokens_per_second',
      'tokens that all members train on together',
      ...runs.map(({ id, members }): Sample => [
        members.reduce((sum, { tokensPerSecond }) => sum + tokensPerSecond, 0),
        { run: id },
      ]),
    ),
    gauge(
      'run_member_tokens_per_second',
      'tokens that members train on each',
      ...spread((m) => m.tokensPerSecond),
    ),
    gauge('run_members_outer_step', 'outer steps of members', ...spread((m) => m.outerStep)),
    gauge('run_members_loss', 'training losses of members', ...spread((m) => m.loss)),
    gauge('run_members_tokens', 'tokens of members', ...spread((m) => m.tokens)),
    gauge('run_members_sent_bytes', 'bytes sent by members', ...spread((m) => m.bytesSent)),
    gauge(
      'run_members_received_bytes',
      'bytes received by members',
      ...spread((m) => m.bytesReceived),
    ),
    gauge(
      'run_members_partners',
      'peers that members averaged with last',
      ...spread((m) => m.partners.length),
    ),
    gauge(
      'run_members_record_age_seconds',
      'age of the records of members',
      ...spread((m) => m.ageMs / 1000),
    ),
  ]
}

/** Names that Prometheus knows. */
function processFamilies(): Family[] {
  const { userCPUTime, systemCPUTime } = process.resourceUsage()
  return [
    {
      name: 'process_cpu_seconds_total',
      help: 'user and system CPU time of the daemon',
      kind: 'counter',
      samples: [[(userCPUTime + systemCPUTime) / 1e6]],
    },
    {
      name: 'process_resident_memory_bytes',
      help: 'resident memory of the daemon',
      kind: 'gauge',
      samples: [[process.memoryUsage.rss()]],
    },
    {
      name: 'process_start_time_seconds',
      help: 'when the daemon started, seconds since 1970',
      kind: 'gauge',
      samples: [[Date.now() / 1000 - process.uptime()]],
    },
  ]
}
