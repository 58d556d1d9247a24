/**
 * The directory of public runs: a well-known CID that every member of a public run provides.
 *
 * Contract: `run/list` answers with the public runs the asked peer takes part in. Nothing in it is trusted: a run is
 * joined by its id, which its manifest must match. Guarantee: listing ends within its deadline with what was found.
 */
import { utf8ToBytes } from '@noble/hashes/utils.js'
import type { CID } from 'multiformats/cid'
import { z } from 'zod'
import type { Clock } from '../clock.ts'
import { LIMITS } from '../limits.ts'
import type { Network } from '../net/network.ts'
import { cidOf, encodeCbor } from '../store/content.ts'
import { parseMessage } from '../store/message.ts'
import type { RunListing, RunView } from './view.ts'

const DIRECTORY_NAME = 'shoal: directory of public runs, version 1'
/** Look-up and all questions together. */
const DISCOVER_MS = 10_000
const ASK_MS = 4_000

const entrySchema = z.strictObject({
  id: z.string().max(128),
  name: z.string().max(64),
  parameters: z.number().int().min(0),
  outerStep: z.number().int().min(0),
  outerSteps: z.number().int().min(0),
  peers: z.number().int().min(0).max(LIMITS.runPeers),
})
const replySchema = z.strictObject({ runs: z.array(entrySchema).max(LIMITS.listedRuns) })

export async function directoryCid(): Promise<CID> {
  return cidOf(utf8ToBytes(DIRECTORY_NAME), 'raw')
}

/** Answers peers with this node's public runs. Returns the function that stops it. */
export function serveDirectory(network: Network, runs: () => RunView[]): () => void {
  return network.rpc.handle('run/list', async () => {
    const listed = runs()
      .filter((view) => view.public && view.status !== 'failed')
      .slice(0, LIMITS.listedRuns)
      .map(({ id, name, parameters, outerStep, outerSteps, members }) => ({
        id,
        name,
        parameters,
        outerStep,
        outerSteps,
        peers: members.length,
      }))
    return encodeCbor({ runs: listed })
  })
}

/** Public runs that connected peers and providers of the directory tell of, most peers first. */
export async function discoverRuns(
  network: Network,
  clock: Clock,
  signal?: AbortSignal,
): Promise<RunListing[]> {
  const deadline = clock.deadline(DISCOVER_MS, 'discovering runs', signal)
  const found = new Map<string, RunListing>()
  const asked = new Set<string>()
  const ask = async (peer: string): Promise<void> => {
    if (asked.has(peer)) return
    asked.add(peer)
    try {
      const reply = await network.rpc.call(peer, 'run/list', encodeCbor({}), {
        signal: deadline,
        deadlineMs: ASK_MS,
      })
      const { runs } = parseMessage(replySchema, reply, 'list of runs')
      for (const entry of runs) note(found, entry, peer)
    } catch {
      // A peer that does not answer has nothing to list.
    }
  }
  const questions = network.connectedPeers().slice(0, LIMITS.providersPerCid).map(ask)
  for await (const peer of network.discovery.find(await directoryCid(), {
    signal: deadline,
    deadlineMs: DISCOVER_MS,
  })) {
    questions.push(ask(peer))
  }
  await Promise.all(questions)
  signal?.throwIfAborted()
  return [...found.values()].sort((a, b) => b.peers - a.peers || (a.id < b.id ? -1 : 1))
}

function note(
  found: Map<string, RunListing>,
  entry: z.infer<typeof entrySchema>,
  source: string,
): void {
  const known = found.get(entry.id)
  if (known === undefined) {
    found.set(entry.id, { ...entry, status: null, sources: [source] })
    return
  }
  known.sources.push(source)
  known.peers = Math.max(known.peers, entry.peers)
  known.outerStep = Math.max(known.outerStep, entry.outerStep)
}
