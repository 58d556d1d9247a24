/**
 * Services that programs beside this node serve through the local API.
 *
 * A program asks for the next request and answers it; any number of programs may share the work of one service. Asking
 * is what keeps a service alive: one that nobody asks for is no longer offered, and what waits for it is refused.
 */
import { randomUUID } from 'node:crypto'
import type { Clock } from '../../src/clock.ts'
import { abortReason, raceSignal, withDeadline } from '../../src/clock.ts'
import { ShoalError } from '../../src/errors.ts'
import { DEADLINES, LIMITS } from '../../src/limits.ts'
import type { ServiceReply, Services } from '../../src/net/services.ts'

export interface ServiceRequest {
  id: string
  peer: string
  request: Uint8Array
}

export interface OutsideServices {
  /** The next request; undefined when none has come within `waitMs`. */
  next(service: string, waitMs: number, signal: AbortSignal): Promise<ServiceRequest | undefined>
  /** Throws `not_found` when the request is answered already, or its caller has gone. */
  reply(service: string, id: string, reply: ServiceReply): void
  refuse(service: string, id: string, message: string): void
  close(): void
}

interface Pending extends ServiceRequest {
  /** Fires when the caller has gone. */
  signal: AbortSignal
  answer: PromiseWithResolvers<ServiceReply>
}

interface Service {
  /** Not yet given to a program. */
  waiting: Pending[]
  /** Given to a program, by id. */
  given: Map<string, Pending>
  arrived: PromiseWithResolvers<void>
  asking: number
  askedMs: number
  remove: () => void
}

export function createOutsideServices(options: {
  services: Services
  clock: Clock
}): OutsideServices {
  const { clock } = options
  const served = new Map<string, Service>()
  const closing = new AbortController()

  function end(name: string, service: Service, fault: ShoalError): void {
    served.delete(name)
    service.remove()
    for (const { answer } of [...service.waiting, ...service.given.values()]) answer.reject(fault)
  }

  /** Ends a service once nobody has asked for its requests for a while. */
  async function watch(name: string, service: Service): Promise<void> {
    for (;;) {
      const idleMs = clock.now() - service.askedMs
      if (service.asking === 0 && idleMs >= DEADLINES.serviceIdleMs) break
      const leftMs = service.asking > 0 ? DEADLINES.serviceIdleMs : DEADLINES.serviceIdleMs - idleMs
      await clock.sleep(leftMs, closing.signal)
    }
    end(name, service, new ShoalError('refused', `the program behind "${name}" has gone`))
  }

  function open(name: string): Service {
    const known = served.get(name)
    if (known !== undefined) return known
    const service: Service = {
      waiting: [],
      given: new Map(),
      arrived: Promise.withResolvers(),
      asking: 0,
      askedMs: clock.now(),
      remove: () => {},
    }
    service.remove = options.services.serve(name, async (request, { peer, signal }) =>
      accept(service, { id: randomUUID(), peer, request, signal, answer: Promise.withResolvers() }),
    )
    served.set(name, service)
    // Ends with the service, or when this is closed.
    watch(name, service).catch(() => {})
    return service
  }

  function take(name: string, id: string): Pending {
    const pending = served.get(name)?.given.get(id)
    if (pending === undefined) {
      throw new ShoalError('not_found', 'this request is answered already, or its caller has gone')
    }
    served.get(name)?.given.delete(id)
    return pending
  }

  return {
    async next(name, waitMs, signal) {
      const service = open(name)
      service.asking++
      try {
        return await nextRequest(service, clock, waitMs, signal)
      } finally {
        service.asking--
        service.askedMs = clock.now()
      }
    },
    reply: (name, id, reply) => take(name, id).answer.resolve(reply),
    refuse: (name, id, message) => take(name, id).answer.reject(new ShoalError('refused', message)),
    close() {
      const fault = new ShoalError('aborted', 'the node is stopping')
      closing.abort(fault)
      for (const [name, service] of served) end(name, service, fault)
    },
  }
}

async function accept(service: Service, pending: Pending): Promise<ServiceReply> {
  if (service.waiting.length + service.given.size >= LIMITS.serviceRequests) {
    throw new ShoalError('limit_exceeded', 'too many requests to this service are unanswered')
  }
  service.waiting.push(pending)
  service.arrived.resolve()
  try {
    return await raceSignal(pending.answer.promise, pending.signal)
  } finally {
    service.waiting = service.waiting.filter((other) => other !== pending)
    service.given.delete(pending.id)
  }
}

async function nextRequest(
  service: Service,
  clock: Clock,
  waitMs: number,
  signal: AbortSignal,
): Promise<ServiceRequest | undefined> {
  const patience = <T>(work: (limited: AbortSignal) => Promise<T>): Promise<T> =>
    withDeadline(clock, waitMs, 'a request', signal, work)
  return patience(async (limited) => {
    while (!limited.aborted) {
      const pending = service.waiting.shift()
      if (pending !== undefined) {
        service.given.set(pending.id, pending)
        const { id, peer, request } = pending
        return { id, peer, request }
      }
      service.arrived = Promise.withResolvers()
      await raceSignal(service.arrived.promise, limited).catch(() => {})
    }
    if (signal.aborted) throw abortReason(signal)
    return undefined
  })
}
