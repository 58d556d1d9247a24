/** Names the tests that passed only when tried again: a machine that is busy, or a race of ours. */
import type { Reporter, TestCase } from 'vitest/node'

export function createRetriedReporter(): Reporter {
  const retried: string[] = []
  return {
    onTestCaseResult(test: TestCase) {
      const times = test.diagnostic()?.retryCount ?? 0
      if (times > 0) retried.push(`${test.module.relativeModuleId} > ${test.fullName} (${times})`)
    },
    onTestRunEnd() {
      if (retried.length === 0) return
      process.stdout.write(`\nTried again:\n${retried.map((line) => `  ${line}\n`).join('')}`)
    },
  }
}
