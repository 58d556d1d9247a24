/** A program of your own as a peer: it trains with its own engine. `node embed.ts [link]`, without a link a new run. */
import { readFile } from 'node:fs/promises'
import { createNetwork, createNode, runSpecSchema, silentLogger } from 'shoal'
import { openDataFolder } from 'shoal/data-folder'
import { createEngine } from 'shoal/engine'
import { nodeTransports } from 'shoal/transports'

const [link] = process.argv.slice(2)
const { DATA_DIR = 'embedded-node', TEXT = 'text.txt', LISTEN = '/ip4/0.0.0.0/tcp/0' } = process.env
const folder = await openDataFolder(DATA_DIR, silentLogger)
const { identity, records, blobs } = folder
const transports = nodeTransports()
const network = await createNetwork({ identity, records, transports, listen: [LISTEN] })
const node = await createNode({ network, records, blobs, engine: await createEngine() })

const model = { layers: 1, heads: 2, embedding: 32, context: 32 }
const spec = { name: 'embedded', data: TEXT, model, outerSteps: 5, limits: { minPeers: 2 } }
const { id } =
  link === undefined
    ? await node.createRun(runSpecSchema.parse(spec), await readFile(TEXT))
    : await node.joinRun(link)
console.log(node.invite(id))

const { promise: finished, resolve: finish } = Promise.withResolvers<void>()
node.onEvent((event) => {
  if (event.type === 'outer_step') console.log(event.outerStep, event.loss, event.round.partners)
  if (event.type === 'run_status' && event.status === 'finished') finish()
})
await finished
console.log('parameters', node.run(id).parametersHash)
await node.stop()
folder.close()
