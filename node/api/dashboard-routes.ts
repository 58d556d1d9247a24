/** Routes of the dashboard: its page and files, which hold no secret, and what its download buttons ask for. */
import { z } from 'zod'
import { DEADLINES } from '../../src/limits.ts'
import { none, oneRun, type Route } from './route.ts'

export const DASHBOARD_ROUTES = {
  dashboard: {
    method: 'GET',
    path: '/',
    summary:
      'The dashboard. It asks for the token, or has a code in its fragment, which no browser sends.',
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
  dashboardLink: {
    method: 'POST',
    path: '/v1/dashboard-links',
    summary:
      'Makes a link that opens the dashboard, once and soon. `isForOwnUser`: for the user of the daemon only, where the system tells whose a connection is (Linux); for a link that other users of the machine can see.',
    input: z.strictObject({ isForOwnUser: z.boolean().default(false) }),
    output: z.object({ link: z.string(), expiresInMs: z.number() }),
    command: 'dashboard',
  },
  dashboardToken: {
    method: 'POST',
    path: '/v1/dashboard-token',
    summary: 'The token for the code of a link to the dashboard, which works once.',
    input: z.strictObject({ code: z.string().min(1).max(64) }),
    output: z.object({ token: z.string() }),
    open: true,
    command: { none: 'the page asks for it when it is opened by its link' },
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
