/** What the layers above see of the network: peers by id, calls, providers. They never see libp2p. */
import type { CID } from 'multiformats/cid'
import type { Diagnosis } from './diagnosis.ts'
import type { Identity } from './identity.ts'
import type { NatReport } from './nat.ts'
import type { PathRecord } from './path-history.ts'
import type { RelayLimits, RelayUse } from './relay-server.ts'

/**
 * How others reach this node. `public`: by dialling it, as another peer has shown; `mapped`: by dialling its router;
 * `punchable`: through relays, and directly wherever a hole can be made; `relay-only`: through relays; `unknown`: nobody
 * could tell yet.
 */
export type NetworkReachability = 'unknown' | 'public' | 'mapped' | 'punchable' | 'relay-only'

/** An open connection to another peer. */
export interface Link {
  peer: string
  address: string
  transport: string
  /** False over a circuit relay. */
  direct: boolean
  direction: 'inbound' | 'outbound'
  rttMs: number | null
  ageMs: number
  /** Handshakes and framing included. */
  bytesSent: number
  bytesReceived: number
  /** Of about the last five seconds. */
  sentBytesPerSecond: number
  receivedBytesPerSecond: number
  /** All paths to this peer, oldest first: how it came to be reached as it is. */
  history: PathRecord[]
}

/** Two long-lived streams per peer, so that a 1 MiB chunk never delays a control call by more than itself. */
export type Lane = 'control' | 'bulk'

export interface RpcContext {
  /** The authenticated caller. */
  peer: string
  /** Fires when the caller's stream ends or the node stops. */
  signal: AbortSignal
}

export type RpcHandler = (request: Uint8Array, context: RpcContext) => Promise<Uint8Array>

export interface CallOptions {
  signal?: AbortSignal | undefined
  /** Default `DEADLINES.rpcMs` on the control lane, `DEADLINES.chunkMs` on the bulk lane. */
  deadlineMs?: number | undefined
  lane?: Lane | undefined
  /** The handler may be asked twice: when a path breaks, the call goes on over another. Default false. */
  repeatable?: boolean | undefined
  /**
   * Memory for the reply, which is then a part of it, when it is long enough. To use the same for one call after the
   * other saves as much time as all else that a long reply costs. The caller's again when the call has settled.
   */
  into?: Uint8Array | undefined
}

/** Request and reply between peers. Faults thrown by a handler arrive at the caller with code and message. */
export interface PeerRpc {
  /** One handler per method; returns the function that removes it. */
  handle(method: string, handler: RpcHandler): () => void
  /** Dials when not connected. Rejects with `peer_unreachable`, `timeout`, `message_invalid` or the handler's fault. */
  call(
    peer: string,
    method: string,
    request: Uint8Array,
    options?: CallOptions,
  ): Promise<Uint8Array>
}

export interface Discovery {
  /**
   * Announces this node as a provider, now and again before the record expires, retrying in the background. Throws
   * `limit_exceeded` above `LIMITS.providedCids`.
   */
  provide(cid: CID): void
  unprovide(cid: CID): void
  /**
   * Peer ids of providers, without this node, at most `LIMITS.providersPerCid`, as they are found. Ends (never hangs)
   * when the look-up is over, its deadline has passed, or there is nobody to ask.
   */
  find(cid: CID, options?: { signal?: AbortSignal; deadlineMs?: number }): AsyncIterable<string>
}

/** The mesh as the rest of a node sees it: bytes, peers and content, no training. */
export interface Network {
  readonly identity: Identity
  readonly peerId: string
  readonly rpc: PeerRpc
  readonly discovery: Discovery
  /** Multiaddrs with `/p2p/<id>` under which this node may be dialled. */
  addresses(): string[]
  links(): Link[]
  connectedPeers(): string[]
  /** A node that is `public` or `mapped` serves the DHT too. */
  reachability(): NetworkReachability
  nat(): NatReport
  /** Peer ids of the relays through which this node can be reached now. */
  relays(): string[]
  /** What this node carries as a relay for others, if it does. */
  relaying(): { limits: RelayLimits; use: RelayUse } | null
  /** Looks at how this node is connected, measures to `peer` or any, and advises. Takes some seconds. */
  diagnose(options: { peer?: string | undefined; signal: AbortSignal }): Promise<Diagnosis>
  /** Dials a multiaddr or a known peer id; resolves to the peer id. */
  connect(target: string, signal?: AbortSignal): Promise<string>
  /** Calls back for every peer that becomes connected (and identified), and for each connected now. Returns the remover. */
  onConnect(listener: (peer: string) => void): () => void
  onDisconnect(listener: (peer: string) => void): () => void
  stop(): Promise<void>
}
