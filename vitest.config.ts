import { defineConfig } from 'vitest/config'
import { LongFirstSequencer } from './test/long-first-sequencer.ts'
import { createRetriedReporter } from './test/retried-reporter.ts'

/** Many nodes, sockets, processes or namespaces, on the real clock. */
const REAL_CLOCK = [
  'test/{e2e,nat,swarm}/**/*.test.ts',
  'test/unit/{net,node/api,node/net,scripts/bench}/**/*.test.ts',
]

export default defineConfig({
  test: {
    testTimeout: 120_000,
    hookTimeout: 60_000,
    // Three files at a time on the 2 cores that are the bar: swarm and e2e tests start many nodes, but wait half of the time.
    maxWorkers: 3,
    sequence: { sequencer: LongFirstSequencer },
    reporters: ['default', createRetriedReporter()],
    projects: [
      {
        extends: true,
        test: { name: 'pure', include: ['test/**/*.test.ts'], exclude: REAL_CLOCK },
      },
      {
        extends: true,
        test: {
          name: 'real clock',
          include: REAL_CLOCK,
          // A machine that stands still for a second spoils a round, and so a test. What was tried again is listed.
          retry: 2,
        },
      },
    ],
  },
})
