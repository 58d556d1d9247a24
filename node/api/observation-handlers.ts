/** What the routes for whoever looks on do. */
import type { ShoalNode } from '../../src/node.ts'
import { historyOf } from '../../src/run/history.ts'
import { eventLogLines } from '../event-log-file.ts'
import { bytesHandler, handler } from './handler.ts'
import { prometheusText } from './prometheus.ts'
import { ROUTES } from './routes.ts'

export function observationHandlers(node: ShoalNode) {
  return {
    metrics: bytesHandler(ROUTES.metrics, async () => {
      const content = new TextEncoder().encode(prometheusText(node))
      return { output: {}, content: [content], bytes: content.length }
    }),
    history: handler(ROUTES.history, ({ run, after, points }) =>
      historyOf(node.loggedEvents(run, after), points),
    ),
    runEvents: bytesHandler(ROUTES.runEvents, async ({ run, after }) => ({
      output: {},
      content: eventLogLines(node.run(run), node.loggedEvents(run, after)),
    })),
  }
}
