import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    testTimeout: 60_000,
    hookTimeout: 60_000,
    // Three files at a time on the 2 cores that are the bar: swarm and e2e tests start many nodes, but wait half of the time.
    maxWorkers: 3,
  },
})
