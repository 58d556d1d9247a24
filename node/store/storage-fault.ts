/** What the file system and SQLite report, as faults that name the path and the remedy. */
import { messageOf, ShoalError } from '../../src/errors.ts'

/** Errno names and what to do about them; anything else is reported as it is. */
const REMEDIES: Record<string, string> = {
  ENOSPC: 'the disk is full; free some space or choose another folder with --data-dir',
  EDQUOT: 'the disk quota is used up; free some space or choose another folder with --data-dir',
  EACCES:
    'permission denied; make it writable for this user or choose another folder with --data-dir',
  EPERM:
    'permission denied; make it writable for this user or choose another folder with --data-dir',
  EROFS: 'the file system is read-only; choose another folder with --data-dir',
  ENOTDIR: 'a part of the path is a file; choose another folder with --data-dir',
  EEXIST: 'a file is in the way; move it or choose another folder with --data-dir',
  EMFILE: 'too many open files; raise the limit (ulimit -n)',
}

/** `thrown` as `storage_failed`; faults of our own pass unchanged. */
export function storageFault(thrown: unknown, path: string): ShoalError {
  if (thrown instanceof ShoalError) return thrown
  const remedy = REMEDIES[errnoOf(thrown) ?? ''] ?? messageOf(thrown)
  return new ShoalError('storage_failed', `${path}: ${remedy}`, { cause: thrown })
}

/** `ENOENT` and the like; undefined for errors that carry none. */
export function errnoOf(thrown: unknown): string | undefined {
  const carries = thrown instanceof Error && 'code' in thrown && typeof thrown.code === 'string'
  return carries ? String(thrown.code) : undefined
}
