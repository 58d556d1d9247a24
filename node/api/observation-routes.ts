/** Routes for whoever looks on: metrics for Prometheus, the course of a run, its event log. */
import { z } from 'zod'
import { DEADLINES, LIMITS } from '../../src/limits.ts'
import { runHistorySchema } from '../../src/run/history.ts'
import { none, numeric, oneRun, type Route } from './route.ts'

const eventNumber = numeric(z.number().int().min(0))

export const OBSERVATION_ROUTES = {
  metrics: {
    method: 'GET',
    path: '/metrics',
    summary: 'All figures of this node and its runs in the Prometheus text format.',
    input: none,
    output: z.object({}),
    answer: 'bytes',
    contentType: 'text/plain; version=0.0.4; charset=utf-8',
    command: { none: 'Prometheus reads it; `shoal status` and `shoal run show` are for people' },
  },
  history: {
    method: 'GET',
    path: '/v1/runs/{run}/history',
    summary:
      'Outer steps, validations and members of a run as this node has seen them, over restarts; with `after`, what came after an event number.',
    input: oneRun.extend({
      after: eventNumber.default(0),
      points: numeric(z.number().int().min(1).max(LIMITS.historyPoints)).default(1000),
    }),
    output: runHistorySchema,
    deadlineMs: DEADLINES.apiLongMs,
    command: 'run show',
  },
  runEvents: {
    method: 'GET',
    path: '/v1/runs/{run}/events',
    summary:
      'The event log of a run, one JSON object per line: a header, then each event with its number and time. `shoal run replay` reads it.',
    input: oneRun.extend({ after: eventNumber.default(0) }),
    output: z.object({}),
    answer: 'bytes',
    contentType: 'application/x-ndjson',
    deadlineMs: DEADLINES.apiLongMs,
    command: 'run events',
  },
} as const satisfies Record<string, Route>
