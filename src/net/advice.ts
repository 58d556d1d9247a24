/** One sentence on each thing that `shoal doctor` has looked at: how it is, and what to do about it. */
import type { Diagnosis } from './diagnosis.ts'
import { isGlobalHost } from './addresses.ts'
import type { Endpoint, NatFiltering, NatMapping, NatType, PortForwarding } from './nat.ts'
import type { NetworkReachability } from './network.ts'

export interface Advice {
  subject: string
  /** `ok`: nothing to do; `hint`: could be better; `problem`: this keeps peers away. */
  level: 'ok' | 'hint' | 'problem'
  finding: string
  advice: string
}

type Facts = Omit<Diagnosis, 'advice'>

/** Clocks of peers do not matter to a run; far off, people wonder about logs and certificates of other programs. */
const CLOCK_HINT_MS = 5_000
/** A contribution of some megabytes takes a minute then. */
const SLOW_BYTES_PER_SECOND = 125_000

export function adviceOn(facts: Facts): Advice[] {
  return [
    onPeers(facts),
    onReachability(facts),
    onNat(facts),
    onUdp(facts),
    onTcp(facts),
    ...onForwarding(facts),
    ...facts.ports.map((port) => onPort(facts, port)),
    ...(facts.public ? [onReflector(facts)] : []),
    onWebRtc(facts),
    onRelays(facts),
    onClock(facts),
    onBandwidth(facts),
  ]
}

function onPeers({ peers: { direct, relayed } }: Facts): Advice {
  const subject = 'peers'
  if (direct + relayed === 0) {
    const advice =
      'Give the address of a node of the swarm with --bootstrap, and see that this machine is online.'
    return { subject, level: 'problem', finding: 'none connected', advice }
  }
  const finding = `${direct} connected directly, ${relayed} through relays`
  return { subject, level: 'ok', finding, advice: 'Nothing to do.' }
}

const REACHABILITY: Record<NetworkReachability, Pick<Advice, 'level' | 'finding' | 'advice'>> = {
  public: { level: 'ok', finding: 'others can dial this node', advice: 'Nothing to do.' },
  mapped: {
    level: 'ok',
    finding: 'others can dial this node through its router',
    advice: 'Nothing to do: keep the forwarded port.',
  },
  punchable: {
    level: 'hint',
    finding: 'others reach this node through relays, and directly where a hole can be punched',
    advice: 'Forward a port of the router to this machine to be reached by everybody at once.',
  },
  'relay-only': {
    level: 'hint',
    finding: 'others reach this node through relays only',
    advice: 'Forward a port of the router, or let UDP out: relayed rounds are slower.',
  },
  unknown: {
    level: 'hint',
    finding: 'nobody could tell yet',
    advice: 'Ask again in a minute, or connect to a public node with --bootstrap.',
  },
}

function onReachability({ reachability, public: isPublic, ports }: Facts): Advice {
  const isRefuted =
    isPublic && ports.length > 0 && ports.every(({ isReached }) => isReached === false)
  if (isRefuted) {
    return {
      subject: 'reachability',
      level: 'problem',
      finding: 'this node says --public, and no neighbour could dial it',
      advice: 'Open its ports in the firewall and the router, or start it without --public.',
    }
  }
  return { subject: 'reachability', ...REACHABILITY[reachability] }
}

const NAT_ADVICE: Record<NatType, Pick<Advice, 'level' | 'advice'>> = {
  unknown: {
    level: 'hint',
    advice: 'Connect to a public node (shoal daemon --public): it takes one to look from outside.',
  },
  open: { level: 'ok', advice: 'No NAT stands in the way: open the port in the firewall.' },
  'full-cone': { level: 'ok', advice: 'Others can reach this machine: the best kind of NAT.' },
  'restricted-cone': { level: 'ok', advice: 'Holes can be punched to nearly every other peer.' },
  'port-restricted-cone': {
    level: 'ok',
    advice: 'Holes can be punched to most peers, behind symmetric NATs after a search of seconds.',
  },
  symmetric: {
    level: 'hint',
    advice: 'Two peers behind such NATs need a relay: forward a port, or turn off "symmetric NAT".',
  },
  'udp-blocked': { level: 'hint', advice: 'Let UDP out of this network for more direct paths.' },
  'web-only': {
    level: 'hint',
    advice: 'Only web ports get out: let TCP to port 4010 and UDP out for direct paths.',
  },
}

function onNat({ nat: { type } }: Facts): Advice {
  return { subject: 'NAT', finding: type, ...NAT_ADVICE[type] }
}

const FILTERS: Record<NatFiltering, string> = {
  independent: 'lets anybody in',
  address: 'lets in hosts that were sent to',
  'address-and-port': 'lets in hosts and ports that were sent to',
}

function mappingText(mapping: NatMapping): string {
  return mapping === 'independent'
    ? 'one outside port for everybody'
    : 'another outside port for each destination'
}

function endpointText({ host, port }: Endpoint): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`
}

function onUdp({ nat: { type, udp } }: Facts): Advice {
  const subject = 'UDP'
  if (udp !== undefined) {
    const outside = endpointText(udp.outside)
    const finding = `seen as ${outside}, ${mappingText(udp.mapping)}, ${FILTERS[udp.filtering]}`
    return { subject, level: 'ok', finding, advice: 'Holes for UDP can be punched.' }
  }
  if (type === 'unknown') return unknown(subject)
  const advice = 'Let UDP out of this network: some pairs have no other direct path.'
  return { subject, level: 'hint', finding: 'does not get out', advice }
}

function onTcp({ nat: { type, tcp } }: Facts): Advice {
  const subject = 'TCP'
  if (tcp !== undefined) {
    const finding = `seen as ${endpointText(tcp.outside)}, ${mappingText(tcp.mapping)}`
    const advice =
      tcp.mapping === 'independent'
        ? 'Holes for TCP can be punched.'
        : 'Holes for TCP cannot be punched here; UDP or a relay stands in.'
    return { subject, level: 'ok', finding, advice }
  }
  if (type === 'unknown') return unknown(subject)
  const advice = 'Let TCP out to other ports than those of the web.'
  return { subject, level: 'hint', finding: 'gets out to web ports only', advice }
}

function unknown(subject: string): Advice {
  const advice = 'Ask again when a public node is connected.'
  return { subject, level: 'hint', finding: 'nobody could tell yet', advice }
}

const PROTOCOLS: Record<PortForwarding['protocol'], string> = {
  pcp: 'PCP',
  'nat-pmp': 'NAT-PMP',
  upnp: 'UPnP',
}

/** Nothing of a router that does not matter. */
function onForwarding({ forwarding, reachability, public: isPublic }: Facts): Advice[] {
  const subject = 'port mapping'
  if (forwarding !== null) {
    const { protocol, router, port, outside } = forwarding
    const where = outside === null ? '' : ` from ${endpointText(outside)}`
    const finding = `${router} forwards port ${port}${where} by ${PROTOCOLS[protocol]}`
    if (outside === null || isGlobalHost(outside.host)) {
      return [{ subject, level: 'ok', finding, advice: 'Nothing to do.' }]
    }
    const advice =
      'The router is itself behind a NAT: ask the provider for a public address to be dialled.'
    return [{ subject, level: 'hint', finding, advice }]
  }
  if (isPublic || reachability === 'public' || reachability === 'mapped') return []
  const advice = 'Turn on UPnP, NAT-PMP or PCP in the router, or forward a port by hand.'
  return [{ subject, level: 'hint', finding: 'no router forwards a port', advice }]
}

function onPort(
  { public: isPublic }: Facts,
  { transport, port, isReached, address }: Facts['ports'][number],
): Advice {
  const subject = `port ${port}/${transport}`
  if (isReached === true) {
    return { subject, level: 'ok', finding: `reached at ${address}`, advice: 'Nothing to do.' }
  }
  const level = isPublic ? 'problem' : 'hint'
  if (isReached === false) {
    const advice = `Forward TCP port ${port} of the router to this machine and open it in the firewall.`
    return { subject, level, finding: 'not reached from outside', advice }
  }
  const advice = 'Ask again in a minute: neighbours dial back rarely.'
  return { subject, level: 'hint', finding: 'no neighbour could try', advice }
}

/** Of a public node. */
function onReflector({ reflectorPorts }: Facts): Advice {
  const subject = 'STUN'
  if (reflectorPorts.length === 0) {
    const advice = 'Free ports 3478 and 3479: peers learn there how their NATs look from outside.'
    return { subject, level: 'problem', finding: 'listens nowhere', advice }
  }
  const finding = `answers on ${reflectorPorts.join(' and ')}`
  return { subject, level: 'ok', finding, advice: 'Open them in the firewall for UDP and TCP.' }
}

function onWebRtc({ webRtc }: Facts): Advice {
  const subject = 'WebRTC'
  if (webRtc) return { subject, level: 'ok', finding: 'there', advice: 'Nothing to do.' }
  return {
    subject,
    level: 'hint',
    finding: 'turned off with --punch or --network lan, or not installed',
    advice:
      'Install @roamhq/wrtc if it has a build for this machine: browsers have no other direct path.',
  }
}

function onRelays({ reachability, relays }: Facts): Advice {
  const subject = 'relays'
  const isReachable = reachability === 'public' || reachability === 'mapped'
  // By IPv6 alone, not by everybody.
  if (isReachable && relays.length === 0) {
    return { subject, level: 'ok', finding: 'none needed', advice: 'Nothing to do.' }
  }
  const finding = relays.length === 0 ? 'none' : `${relays.length} held`
  if (relays.length === 0) {
    const advice = 'Nobody can call this node: the swarm needs a node with shoal daemon --public.'
    return { subject, level: 'problem', finding, advice }
  }
  if (relays.length === 1) {
    const advice = 'A second public node in the swarm keeps this one in reach when the first goes.'
    return { subject, level: 'hint', finding, advice }
  }
  return { subject, level: 'ok', finding, advice: 'Nothing to do.' }
}

function onClock({ clock }: Facts): Advice {
  const subject = 'clock'
  if (clock === null) return unknown(subject)
  const seconds = Math.abs(clock.aheadMs / 1000).toFixed(1)
  const side = clock.aheadMs > 0 ? 'ahead of' : 'behind'
  const finding = `${seconds} s ${side} ${clock.peers} ${clock.peers === 1 ? 'peer' : 'peers'}`
  if (Math.abs(clock.aheadMs) < CLOCK_HINT_MS) {
    return { subject, level: 'ok', finding, advice: 'Nothing to do.' }
  }
  const advice = 'Set the clock (NTP): rounds do not mind, logs and other programs do.'
  return { subject, level: 'hint', finding, advice }
}

function onBandwidth({ bandwidth, bandwidthFault }: Facts): Advice {
  const subject = 'bandwidth'
  if (bandwidth === null) {
    const advice = 'Connect to a peer, or ask again some minutes after the last measurement.'
    return { subject, level: 'hint', finding: `not measured: ${bandwidthFault}`, advice }
  }
  const { uploadBytesPerSecond: up, downloadBytesPerSecond: down, direct, transport } = bandwidth
  const megabits = (rate: number): string => ((rate * 8) / 1e6).toFixed(1)
  const path = direct ? transport : 'a relay'
  const finding = `${megabits(up)} Mbit/s up, ${megabits(down)} Mbit/s down to one peer by ${path}`
  if (Math.min(up, down) >= SLOW_BYTES_PER_SECOND) {
    return { subject, level: 'ok', finding, advice: 'Nothing to do.' }
  }
  const advice = 'Slow for large models: choose more inner steps or a smaller codec for a run.'
  return { subject, level: 'hint', finding, advice }
}
