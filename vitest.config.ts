import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    testTimeout: 60_000,
    hookTimeout: 60_000,
    // Two files at a time: swarm and e2e tests start many nodes, and the bar is a machine with 2 cores.
    maxWorkers: 2,
  },
})
