/**
 * Begins with the tests that take long though their files are small: vitest begins with the largest files, and would
 * leave a minute of a lab to one worker while the others have nothing to do any more.
 */
import { BaseSequencer, type TestSpecification } from 'vitest/node'

const LONG = ['/test/nat/nat.test.ts', '/test/swarm/faults-silence.test.ts']

export class LongFirstSequencer extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const sorted = await super.sort(files)
    return sorted.toSorted((a, b) => Number(isLong(b)) - Number(isLong(a)))
  }
}

function isLong({ moduleId }: TestSpecification): boolean {
  return LONG.some((path) => moduleId.endsWith(path))
}
