/**
 * The one class of fault and the closed list of its codes.
 *
 * Faults are thrown; expected outcomes (`solo`, `refused`, `stale`) are returned. Callers switch on
 * `code`, never on the message. One table maps a code to its HTTP status and its exit code.
 */

/** Exit codes: 0 ok, 1 failed, 2 usage or config, 3 daemon unreachable, 4 refused by swarm or manifest, 130 interrupted. */
export const FAULTS = {
  usage: { status: 400, exit: 2 },
  config_invalid: { status: 400, exit: 2 },
  spec_invalid: { status: 422, exit: 2 },
  link_invalid: { status: 400, exit: 2 },
  body_invalid: { status: 400, exit: 2 },
  body_too_large: { status: 413, exit: 2 },
  data_unreadable: { status: 422, exit: 2 },
  data_unusable: { status: 422, exit: 2 },
  folder_invalid: { status: 422, exit: 2 },
  tensors_invalid: { status: 422, exit: 2 },
  unauthorized: { status: 401, exit: 3 },
  forbidden: { status: 403, exit: 1 },
  daemon_unreachable: { status: 503, exit: 3 },
  not_found: { status: 404, exit: 1 },
  run_unknown: { status: 404, exit: 1 },
  conflict: { status: 409, exit: 1 },
  data_folder_in_use: { status: 409, exit: 1 },
  port_in_use: { status: 409, exit: 1 },
  schema_mismatch: { status: 409, exit: 4 },
  version_unsupported: { status: 409, exit: 4 },
  refused: { status: 409, exit: 4 },
  limit_exceeded: { status: 429, exit: 1 },
  message_invalid: { status: 502, exit: 1 },
  blob_corrupt: { status: 502, exit: 1 },
  blob_unavailable: { status: 504, exit: 1 },
  peer_unreachable: { status: 504, exit: 1 },
  timeout: { status: 504, exit: 1 },
  aborted: { status: 499, exit: 130 },
  state_corrupt: { status: 500, exit: 1 },
  storage_failed: { status: 507, exit: 1 },
  engine_failed: { status: 500, exit: 1 },
  internal: { status: 500, exit: 1 },
} as const

/** Stable names of faults: what callers switch on. */
export type FaultCode = keyof typeof FAULTS

export interface FaultOptions {
  cause?: unknown
  /** Machine-readable facts for the log and the API; never secrets. */
  details?: Record<string, unknown>
}

/** A fault: one line that names the thing and the remedy, with a stable code. */
export class ShoalError extends Error {
  readonly code: FaultCode
  readonly details: Record<string, unknown>

  constructor(code: FaultCode, message: string, options: FaultOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.name = 'ShoalError'
    this.code = code
    this.details = options.details ?? {}
  }
}

export function isFaultCode(code: unknown): code is FaultCode {
  return typeof code === 'string' && Object.hasOwn(FAULTS, code)
}

/** Whatever was thrown, as a fault: foreign errors become `internal`, an abort keeps its named cause. */
export function asFault(thrown: unknown): ShoalError {
  if (thrown instanceof ShoalError) return thrown
  if (thrown instanceof Error && thrown.name === 'AbortError') {
    return thrown.cause instanceof ShoalError
      ? thrown.cause
      : new ShoalError('aborted', 'interrupted', { cause: thrown })
  }
  return new ShoalError('internal', messageOf(thrown), { cause: thrown })
}

/** libp2p rejects with `Event` objects now and then, so `.message` cannot be trusted to exist. */
export function messageOf(thrown: unknown): string {
  if (thrown instanceof Error) return thrown.message
  if (typeof thrown === 'object' && thrown !== null && 'error' in thrown) {
    return messageOf(thrown.error)
  }
  return String(thrown)
}
