/** `run/snapshot`: which checkpoint holds a run's committed state here, for peers that join late or fell behind. */
import { z } from 'zod'
import { ShoalError } from '../errors.ts'
import type { PeerRpc } from '../net/network.ts'
import { encodeCbor } from '../store/content.ts'
import { parseMessage } from '../store/message.ts'
import type { Run } from './run.ts'

const requestSchema = z.strictObject({
  run: z.string().max(128),
  /** A snapshot named before, which is still being fetched. */
  cid: z.string().max(128).nullable(),
  /** Of any other: one of an outer step before this is of no use to the asker. */
  outerStepMin: z.number().int().min(0),
})

/** Returns the function that stops it. */
export function serveSnapshots(rpc: PeerRpc, find: (id: string) => Run | undefined): () => void {
  return rpc.handle('run/snapshot', async (request) => {
    const { run, cid, outerStepMin } = parseMessage(requestSchema, request, 'snapshot request')
    const snapshot = await find(run)?.snapshot(cid ?? undefined, outerStepMin)
    if (snapshot === undefined) throw new ShoalError('run_unknown', 'nothing of this run to give')
    return encodeCbor(snapshot)
  })
}
