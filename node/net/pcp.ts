/**
 * Has the router forward a port by PCP, or by NAT-PMP where it knows that only. Each renewal is the same question again,
 * so that a router that has restarted, and forgotten, forwards again.
 */
import { randomBytes } from 'node:crypto'
import type { Clock } from '../../src/clock.ts'
import { ShoalError } from '../../src/errors.ts'
import type { Endpoint, PortForwarding } from '../../src/net/nat.ts'
import { hostTowards } from './gateway.ts'
import { encodeNatPmpAddress, encodeNatPmpMap, encodePcpMap, NONCE_BYTES } from './pcp-messages.ts'
import type { MapRequest, RouterReply } from './pcp-messages.ts'
import { withRouter } from './router-questions.ts'
import type { Ask, Exchange } from './router-questions.ts'

/** A question is sent again after each of these: a home router answers in milliseconds, or never. */
const PCP_TRIES_MS = [250, 500]
const NAT_PMP_TRIES_MS = [250, 500, 1_000]
/** By how much a router's clock may run slower than ours, and be late (RFC 6886 §3.6). */
const EPOCH_PACE = 7 / 8
const EPOCH_SLACK_SECONDS = 2
const REFUSALS: Record<number, string> = {
  2: 'not authorized',
  3: 'malformed, or no network',
  4: 'out of resources, or not supported',
  8: 'no resources',
  9: 'unknown protocol',
  10: 'over the quota',
  11: 'no such outside address',
  12: 'there is another NAT in between',
}

export interface PortGrant {
  forwarding: PortForwarding
  seconds: number
}

export interface PcpOptions {
  port: number
  clock: Clock
  onIgnored: Exchange['onIgnored']
  /** The router has begun anew since it answered last. */
  onRestart: (router: string) => void
}

export interface PcpClient {
  /** Undefined: nothing there speaks either protocol. Rejects with `refused` and the router's reason. */
  map(router: Endpoint, seconds: number, signal: AbortSignal): Promise<PortGrant | undefined>
  /** Ends what `map` was asked for last, if anything. */
  unmap(signal: AbortSignal): Promise<void>
}

interface Mapping {
  readonly port: number
  /** Shows the router, and us, that a renewal and its answer belong to the same mapping. */
  readonly nonce: Buffer
  /** Asked for a mapping, whether or not its answer has come. */
  asked: { router: Endpoint; protocol: PortGrant['forwarding']['protocol'] } | undefined
  /** Granted last, and wished for again. */
  outsidePort: number
  heard: { host: string; epoch: number; atMs: number } | undefined
}

export function createPcpClient(options: PcpOptions): PcpClient {
  const { port } = options
  const nonce = randomBytes(NONCE_BYTES)
  const mapping: Mapping = { port, nonce, asked: undefined, outsidePort: port, heard: undefined }

  async function request(
    { host, port: at }: Endpoint,
    seconds: number,
    signal: AbortSignal,
  ): Promise<MapRequest> {
    const localHost = await hostTowards(host, at, signal)
    return { localHost, nonce, port, outsidePort: mapping.outsidePort, seconds }
  }

  return {
    async map(router, seconds, signal) {
      const wanted = await request(router, seconds, signal)
      return await withRouter({ ...options, router, signal }, async (ask) => {
        const { asked } = mapping
        if (asked?.protocol !== 'nat-pmp' || asked.router.host !== router.host) {
          mapping.asked = { router, protocol: 'pcp' }
          const grant = await byPcp(ask, wanted, mapping, options)
          if (grant !== undefined) return grant
          // A router that is silent now still forwards what it has granted before.
          mapping.asked = asked?.router.host === router.host ? asked : undefined
        }
        return await byNatPmp(ask, wanted, mapping, options)
      })
    },
    async unmap(signal) {
      if (mapping.asked === undefined) return
      const { router, protocol } = mapping.asked
      const ended = await request(router, 0, signal)
      await withRouter({ ...options, router, signal }, async (ask) => {
        const end = protocol === 'pcp' ? encodePcpMap(ended) : encodeNatPmpMap(ended)
        await ask.question(end, PCP_TRIES_MS, (answer) =>
          answer.kind === 'nat-pmp-address' ? undefined : answer,
        )
      })
    },
  }
}

async function byPcp(
  ask: Ask,
  request: MapRequest,
  mapping: Mapping,
  options: PcpOptions,
): Promise<PortGrant | undefined> {
  const reply = await ask.question(encodePcpMap(request), PCP_TRIES_MS, (answer) => {
    if (answer.kind === 'unsupported') return answer
    const isOurs =
      answer.kind === 'pcp-map' &&
      answer.nonce.equals(mapping.nonce) &&
      answer.port === mapping.port
    return isOurs ? answer : undefined
  })
  if (reply?.kind !== 'pcp-map') return undefined
  watchEpoch(ask.router, reply, mapping, options)
  return grantOf(ask.router, 'pcp', { ...reply }, mapping)
}

async function byNatPmp(
  ask: Ask,
  request: MapRequest,
  mapping: Mapping,
  options: PcpOptions,
): Promise<PortGrant | undefined> {
  const { router } = ask
  const address = await ask.question(encodeNatPmpAddress(), NAT_PMP_TRIES_MS, (answer) =>
    answer.kind === 'nat-pmp-address' || answer.kind === 'unsupported' ? answer : undefined,
  )
  if (address?.kind !== 'nat-pmp-address') return undefined
  watchEpoch(router, address, mapping, options)
  refuseUnless(address.result === 0, address.result)
  mapping.asked = { router, protocol: 'nat-pmp' }
  const reply = await ask.question(encodeNatPmpMap(request), NAT_PMP_TRIES_MS, (answer) =>
    answer.kind === 'nat-pmp-map' && answer.port === mapping.port ? answer : undefined,
  )
  if (reply?.kind !== 'nat-pmp-map') return undefined
  return grantOf(router, 'nat-pmp', { ...reply, outsideHost: address.outsideHost }, mapping)
}

interface Granted {
  result: number
  seconds: number
  outsidePort: number
  outsideHost: string | undefined
}

function grantOf(
  { host: router }: Endpoint,
  protocol: 'pcp' | 'nat-pmp',
  { result, seconds, outsidePort, outsideHost: host }: Granted,
  mapping: Mapping,
): PortGrant {
  refuseUnless(result === 0 && outsidePort > 0 && seconds > 0, result)
  mapping.outsidePort = outsidePort
  const outside = host === undefined ? null : { host, port: outsidePort }
  return { forwarding: { protocol, router, port: mapping.port, outside }, seconds }
}

function watchEpoch(
  { host }: Endpoint,
  { epoch }: RouterReply,
  mapping: Mapping,
  { clock, onRestart }: PcpOptions,
): void {
  const atMs = clock.now()
  const { heard } = mapping
  if (heard?.host === host) {
    const expected = heard.epoch + (EPOCH_PACE * (atMs - heard.atMs)) / 1000
    if (epoch < expected - EPOCH_SLACK_SECONDS) onRestart(host)
  }
  mapping.heard = { host, epoch, atMs }
}

function refuseUnless(isDone: boolean, result: number): void {
  if (isDone) return
  throw new ShoalError('refused', `the router refuses: ${REFUSALS[result] ?? `result ${result}`}`)
}
