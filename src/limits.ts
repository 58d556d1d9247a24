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
  /** Parameters of a model: 2^28 float32 are 1 GiB, the most a shared vector of the embedded engine holds. */
  parameters: 1 << 28,
  /** Tensors of a schema: a 100-layer GPT has about 1 200. */
  tensors: 4096,
  /** dag-cbor manifest or checkpoint manifest: 2^28 parameters are 1024 chunk CIDs of 36 bytes, times 4 vectors. */
  manifestBytes: 1 << 20,
  /** Peer RPC request or reply: one blob and a header. */
  rpcMessageBytes: (1 << 20) + 4096,
  /** Requests one peer may have unanswered here, per lane: two full pulls and some control calls. */
  rpcRequestsInFlight: 64,
  /** Characters of an RPC method name. */
  rpcMethodLength: 64,
  /** Peers in one averaging group: the final merge of small swarms is all-to-all. */
  groupPeers: 32,
  /** Members of a run that a node keeps in its view. */
  runPeers: 4096,
  /** One signed envelope of shared state: a record is < 1 KiB, a board snapshot some KiB. */
  envelopeBytes: 32 << 10,
  /** Updates kept after a snapshot before the writer makes a new snapshot. */
  envelopeChain: 32,
  /** Envelopes in one anti-entropy message. */
  envelopesPerMessage: 128,
  /** Board entries: notes for people, not a database. */
  boardEntries: 256,
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
  /** Local API: JSON bodies (specs and options, never tensors). */
  apiBodyBytes: 1 << 20,
  /** SSE readers of the local API at once. */
  eventReaders: 256,
  /** Events kept for SSE resume. */
  eventHistory: 1024,
  /** Tokens of one `shoal sample`. */
  sampleTokens: 100_000,
} as const

/** Waits, in milliseconds, where the manifest or config does not say otherwise. */
export const DEADLINES = {
  /** TCP, encryption, muxer and identify. */
  dialMs: 10_000,
  /** A control call between peers. */
  rpcMs: 10_000,
  /** One chunk of 1 MiB: 15 s is 70 KB/s. */
  chunkMs: 15_000,
  /** Look-up of providers in the DHT. */
  findProvidersMs: 15_000,
  /** Announcing one CID. */
  provideMs: 60_000,
  /** A client call to the local daemon. */
  apiMs: 30_000,
  /** Clean shutdown before the process is ended anyway. */
  shutdownMs: 10_000,
} as const
