/** Routes of the dashboard: its page and files, which hold no secret, and what its download buttons ask for. */
import { z } from 'zod'
import { DEADLINES } from '../../src/limits.ts'
import { none, oneRun, type Route } from './route.ts'

export const DASHBOARD_ROUTES = {
  dashboard: {
    method: 'GET',
    path: '/',
    summary: 'The dashboard. Its link carries the token in the fragment, which no browser sends.',
    input: none,
    output: z.object({}),
    answer: 'bytes',
    contentType: 'text/html; charset=utf-8',
    open: true,
    command: 'dashboard',
  },
  dashboardFile: {
    method: 'GET',
    path: '/dashboard/{file}',
    summary: 'A script, style or picture of the dashboard.',
    input: z.strictObject({ file: z.string().max(64) }),
    output: z.object({}),
    answer: 'bytes',
    open: true,
    command: 'dashboard',
  },
  downloadCheckpoint: {
    method: 'GET',
    path: '/v1/runs/{run}/checkpoints/{checkpoint}/files/{file}',
    summary: 'One file of a checkpoint, as an export writes it into a folder.',
    input: oneRun.extend({
      checkpoint: z.string().min(1).max(128),
      file: z.string().min(1).max(64),
    }),
    output: z.object({}),
    answer: 'bytes',
    deadlineMs: DEADLINES.apiLongMs,
    command: 'checkpoint export',
  },
} as const satisfies Record<string, Route>
