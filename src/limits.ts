/**
 * Every bound, with its reason. Nothing that arrives from outside is allocated before it is held against
 * one of these; no queue, message or file is without one.
 */
export const LIMITS = {
  /** One blob or chunk on the wire and on disk: 1 MiB keeps 8 in flight under yamux's 8 MiB read buffer. */
  blobBytes: 1 << 20,
  /** Elements of a slice: 2^18 float32 are exactly one blob, and encoding one blocks the loop < 20 ms. */
  sliceElements: 1 << 18,
  /** Chunks one peer pulls at once from another: 8 x 1 MiB fills a 100 Mbit/s, 500 ms link. */
  chunksInFlight: 8,
  /** Chunks pulled at once from all peers together: what is in memory before it is verified and stored. */
  chunksFetched: 32,
  /** Parameters of a model: 2^28 float32 are 1 GiB, the most a shared vector of the embedded engine holds. */
  parameters: 1 << 28,
  /** Tensors of a schema: a 100-layer GPT has about 1 200. */
  tensors: 4096,
  /** JSON header of a safetensors file: the format's own cap. */
  safetensorsHeaderBytes: 100_000_000,
  /** dag-cbor manifest or checkpoint manifest: 2^28 parameters are 1024 chunk CIDs of 36 bytes, times 4 vectors. */
  manifestBytes: 1 << 20,
  /** Peer RPC request or reply: one blob and a header. */
  rpcMessageBytes: (1 << 20) + 4096,
  /** Requests one peer may have unanswered here, per lane: a thousand callers share a stream, their bytes are bounded below. */
  rpcRequestsInFlight: 1024,
  /** Of these, worked on at once on the control lane: some dozen long polls and what passes between them. */
  rpcHandlersPerStream: 64,
  /** Calls to one peer that wait here, per lane, for the other side to take more. */
  rpcCallsWaiting: 4096,
  /** Bytes of requests and unsent replies that one peer may have here, per stream: two full pulls of 8 chunks. */
  rpcBytesInFlight: 16 << 20,
  /** RPC streams one peer may hold open here: two lanes, and each may be replaced while it still closes. */
  rpcStreamsPerPeer: 4,
  /** Characters of an RPC method name. */
  rpcMethodLength: 64,
  /** Calls that this node takes through one relay at once: a swarm of some dozen members, twice while they reconnect. */
  circuitsPerRelay: 128,
  /** Holes being punched at once for others who asked: each has a few sockets open, or 256 for a symmetric NAT. */
  punches: 4,
  /** Candidates of one side of a WebRTC connection: IPv4 and IPv6 of a few interfaces, and how they look from outside. */
  iceCandidates: 16,
  /** WebRTC connections at once: each has two threads and some sockets of its own. */
  webRtcConnections: 32,
  /** Of these, with one peer: a dead one may seem open while the next is made. */
  webRtcConnectionsPerPeer: 2,
  /** One message of a data channel, a whole TLS record: longer ones leave in bursts that a busy receiver's socket drops. */
  webRtcMessageBytes: (16 << 10) + 256,
  /** Under way at once on a WebRTC connection: 1 Gbit/s and 32 ms, twice; a stack closes a channel that holds 16 MiB. */
  webRtcWindowBytes: 8 << 20,
  /** Held of a data channel whose reader pauses: the largest window, twice. */
  webRtcReadBytes: 16 << 20,
  /** Peers in one averaging group: the final merge of small swarms is all-to-all. */
  groupPeers: 32,
  /** Own contributions to past rounds kept for peers that replay them: 32 rounds bring back a joiner ten times slower. */
  keptRounds: 32,
  /** Bytes of these; the last three rounds are kept whatever they weigh, for partners that are a little slower. */
  keptRoundBytes: 256 << 20,
  /** Snapshots kept for joiners that fetch them, each as large as the model. */
  snapshotsKept: 4,
  /** Members of a run that a node keeps in its view. */
  runPeers: 4096,
  /** One signed envelope of shared state: a record is < 1 KiB, a board snapshot some KiB. */
  envelopeBytes: 32 << 10,
  /** Updates kept after a snapshot before the writer makes a new snapshot. */
  envelopeChain: 32,
  /** One envelope of a peer's record: 32 partners of 52 characters are 1.8 KiB, the rest is < 1 KiB. */
  recordEnvelopeBytes: 8 << 10,
  /** Structs of one update: a full board in one snapshot, twice. */
  updateStructs: 512,
  /** Envelopes in one anti-entropy message. */
  envelopesPerMessage: 128,
  /** Bytes of envelopes in one anti-entropy message: half an RPC message, the rest is for the summary. */
  envelopeBytesPerMessage: 512 << 10,
  /** Proofs of equivocation in one message: 256 KiB at most. */
  proofsPerMessage: 4,
  /** Messages of one anti-entropy exchange: `runPeers` chains of 3 envelopes, 128 at a time. */
  syncMessages: 96,
  /** Anti-entropy exchanges of one run at once. */
  syncsInFlight: 8,
  /** Envelopes that wait to be pushed to one peer; what is dropped is repaired by anti-entropy. */
  envelopesQueued: 256,
  /** Members to which an envelope of another author is pushed onward: e^-4, 2 %, are left to anti-entropy. */
  forwardPeers: 4,
  /** Proofs of equivocation kept per run: 2 envelopes each, 8 MiB at most. */
  equivocationProofs: 128,
  /** Bad envelopes or messages a peer may send in a minute before it is ignored for one. */
  badEnvelopes: 32,
  /** Peers whose bad envelopes are counted. */
  offenders: 1024,
  /** Board entries: notes for people, not a database. */
  boardEntries: 256,
  /** Characters of a text on the board. */
  boardTextLength: 2048,
  /** Admins of a run, the creator included. */
  admins: 16,
  /** Text shared with a run through blobs; larger data is brought by each peer itself. */
  sharedDataBytes: 256 << 20,
  /** Text read from local files for training. */
  localDataBytes: 1 << 30,
  /** Files read from a data folder. */
  dataFiles: 10_000,
  /** Tokens needed for one train and one validation batch to make sense. */
  dataTokensMin: 2_000,
  /** Distinct characters of a char-level vocabulary. */
  vocabularySize: 4096,
  /** Runs one node takes part in at once. */
  activeRuns: 16,
  /** Providers asked for one CID. */
  providersPerCid: 32,
  /** Runs in one directory answer. */
  listedRuns: 64,
  /** Peers remembered over a restart. */
  cachedPeers: 128,
  /** Addresses believed of one peer: IPv4 and IPv6 of a few interfaces and relays. */
  peerAddresses: 16,
  /** CIDs announced at once: every run, its checkpoints and the directory. */
  providedCids: 256,
  /** Peers, and provider records, that libp2p keeps: about 1 KB each, and a look-up reads through all. */
  datastoreEntries: 16_384,
  /** Connections at once: the libp2p default is 300, and one costs about 100 KB. */
  connections: 256,
  /** One blob that a script shares: 4096 blocks, whose list is still one message. */
  sharedBlobBytes: 4096 * (1 << 20),
  /** Blobs that scripts keep here: their records are read at the start. */
  sharedBlobs: 1024,
  /** Averaging groups that one node gives to at once. */
  averagingGroups: 16,
  /** Elements of one average: 256 MiB, held as given, encoded, decoded and averaged. */
  averagedElements: 1 << 26,
  /** Services of outside programs that one node serves. */
  services: 32,
  /** Requests to one service that wait for its program, 1 MiB each at most. */
  serviceRequests: 64,
  /** Replies of services that are being read piece by piece. */
  serviceStreams: 64,
  /** Parameters that the embedded engine evaluates for an outside trainer: seconds on a core, 250 MB. */
  evaluatedParameters: 1 << 24,
  /** Local API: JSON bodies (specs and options, never tensors). */
  apiBodyBytes: 1 << 20,
  /** Links to the dashboard that nobody has opened yet. */
  linkCodes: 16,
  /** Wrong ones within `linkGuessesMs`: a code has 256 bits, people mistype a few. */
  linkGuesses: 16,
  /** SSE readers of the local API at once. */
  eventReaders: 256,
  /** Vectors that the local API holds at once for calls: each may be a model of 1 GiB. */
  tensorCalls: 8,
  /** Events kept for SSE resume. */
  eventHistory: 1024,
  /** Events of one run kept on disk: 10 000 outer steps and what belongs to them, about 12 MB, 22 MB in a large swarm. */
  loggedEvents: 20_000,
  /** Other peers whose throughput is noted with each outer step: 1 KB. */
  chartedPeers: 16,
  /** Outer steps in one answer about a run's history: 2 MB of JSON, or 7 MB in a large swarm. */
  historyPoints: 5_000,
  /** Tokens of one `shoal sample`. */
  sampleTokens: 100_000,
} as const

/** Waits, in milliseconds, where the manifest or config does not say otherwise. */
export const DEADLINES = {
  /** TCP, encryption, muxer and identify. */
  dialMs: 10_000,
  /** One address of several: the next may be better. A handshake is 5 round trips, on a busy machine. */
  dialAddressMs: 4_000,
  /** A control call between peers. */
  rpcMs: 10_000,
  /** The most a handler may work on one request; long polls take 15 s. */
  rpcHandlerMs: 120_000,
  /** A stream that moves no byte for this long in the middle of a message is cut. */
  rpcStallMs: 15_000,
  /** Without a word for so long an outside trainer is silent: it sends a sign of life every few seconds. */
  trainerSilentMs: 15_000,
  /** Another peer's attempt to reach this node. */
  dialBackMs: 5_000,
  /** One attempt to punch a hole, the birthday search included: 1 000 probes at 250 a second, and two round trips. */
  punchMs: 10_000,
  /** Finding out how a NAT behaves: some questions, each repeated, one that a filter never answers. */
  natProbeMs: 10_000,
  /** One chunk of 1 MiB: 15 s is 70 KB/s. */
  chunkMs: 15_000,
  /** A relay's answer: it may have to ask the called peer first. */
  relayMs: 10_000,
  /** Look-up of providers in the DHT. */
  findProvidersMs: 15_000,
  /** Announcing one CID. */
  provideMs: 60_000,
  /** A client call to the local daemon. */
  apiMs: 30_000,
  /** Bytes that move no further for so long, either way, have lost their other end, and keep others from its place. */
  apiStallMs: 30_000,
  /** Opening a link to the dashboard, by hand and over SSH too. */
  linkCodeMs: 120_000,
  /** Wrong links to the dashboard are counted for so long. */
  linkGuessesMs: 60_000,
  /** A client call that reads, builds or writes a whole model or text, or waits for peers. */
  apiLongMs: 300_000,
  /** Silence on the event stream before a comment shows that the connection lives. */
  eventHeartbeatMs: 15_000,
  /** A whole anti-entropy exchange: a slow peer must not keep one of the few places; the next goes on where it ended. */
  stateSyncMs: 30_000,
  /** A reply that its caller reads no further is dropped; a service whose program asks for no requests is gone. */
  serviceIdleMs: 60_000,
  /** Ending the step in hand, and giving what others are fetching, when a run is left: less than `apiMs`. */
  leaveMs: 20_000,
  /** Pushing the last envelopes when a run is left. */
  stateDrainMs: 2_000,
  /** Loading the engine's runtime: a second, or many on a cold disk. */
  engineStartMs: 60_000,
  /** Clean shutdown before the process is ended anyway. */
  shutdownMs: 10_000,
} as const
