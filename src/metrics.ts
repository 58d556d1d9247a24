/** Every metric Shoal keeps, with its help text. Base units; labels are closed sets, never peer ids. */
export const METRICS = {
  envelopes_accepted_total: 'signed envelopes of shared state taken over',
  envelopes_rejected_total: 'signed envelopes dropped, by reason',
  rpc_requests_total: 'peer RPC requests served, by outcome',
  rpc_streams_dropped_total: 'peer RPC streams cut for breaking the protocol, by reason',
  blob_bytes_received_total: 'bytes of blobs fetched from peers',
  blob_bytes_sent_total: 'bytes of blobs served to peers',
  blobs_rejected_total: 'blobs whose bytes did not match their CID',
  rounds_total: 'rounds ended, by outcome',
  round_bytes_sent_total: 'bytes of contributions served to partners',
  round_bytes_received_total: 'bytes of contributions pulled from partners',
  contributions_rejected_total: 'contributions refused, by reason',
  network_bytes_sent_total: 'bytes written to all connections, every protocol included',
  network_bytes_received_total: 'bytes read from all connections, every protocol included',
  relay_requests_total: 'requests to this node as a relay, by outcome',
  relay_bytes_total: 'bytes carried for others as a relay',
  relay_circuits_cut_total: 'relayed connections cut at a limit, by limit',
  peer_offences_total: 'rules broken by peers, by rule',
  peers_banned_total: 'peers sent away for a while, by their last offence',
  direct_paths_total: 'searches for a direct path to a peer behind a relay, by outcome',
  router_packets_ignored_total:
    'packets dropped where an answer of the router was awaited, by reason',
  path_failures_total: 'attempts at a direct path that failed, by way',
  tokens_total: 'tokens trained on by this node',
  training_seconds_total: 'wall time of outer steps',
  training_waited_seconds_total: 'part of it in which compute waited for the network',
} as const

export type MetricName = keyof typeof METRICS

/** What the label of a metric says, where it has one: the last word of a help that ends with `, by …`. */
export function labelOf(help: string): string | undefined {
  return /, by .*?(\w+)$/.exec(help)?.[1]
}

/** Counters of one node. */
export interface Metrics {
  add(name: MetricName, value?: number, label?: string): void
  /** Sum over all labels, or the value of one. */
  read(name: MetricName, label?: string): number
  /** All counters as `name` or `name{label}`. */
  snapshot(): Record<string, number>
}

/** Counters that begin at 0. */
export function createMetrics(): Metrics {
  const counters = new Map<MetricName, Map<string, number>>()
  return {
    add(name, value = 1, label = '') {
      const labels = counters.get(name) ?? new Map<string, number>()
      labels.set(label, (labels.get(label) ?? 0) + value)
      counters.set(name, labels)
    },
    read(name, label) {
      const labels = counters.get(name)
      if (labels === undefined) return 0
      if (label !== undefined) return labels.get(label) ?? 0
      return [...labels.values()].reduce((sum, value) => sum + value, 0)
    },
    snapshot() {
      const all: Record<string, number> = {}
      for (const [name, labels] of counters) {
        for (const [label, value] of labels) all[label === '' ? name : `${name}{${label}}`] = value
      }
      return all
    },
  }
}
