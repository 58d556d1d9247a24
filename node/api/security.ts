/**
 * Who may call the local API. Always on, because a web page in the user's browser can reach loopback too:
 * a Host allow-list (DNS rebinding), no foreign Origin (cross-site requests), a bearer token (other users of the
 * machine), bodies of two types only that forms cannot send. There is no CORS: no other site may read an answer.
 */
import { createHash, timingSafeEqual } from 'node:crypto'
import type { MiddlewareHandler } from 'hono'
import { ShoalError } from '../../src/errors.ts'

export interface GuardOptions {
  token: string
  /** Port of the server, known once it listens. */
  port: () => number
  /** Whether a path needs no token. */
  isOpen: (path: string) => boolean
}

export const JSON_TYPE = 'application/json'
export const OCTETS_TYPE = 'application/octet-stream'

/**
 * Sent with every answer: a page here runs this node's own files only and cannot be framed, nothing is kept in caches,
 * and no type is guessed.
 */
export const PAGE_HEADERS: Readonly<Record<string, string>> = {
  'content-security-policy': [
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  ].join('; '),
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
  'referrer-policy': 'no-referrer',
  'x-content-type-options': 'nosniff',
  'cache-control': 'no-store',
}

/** Throws `forbidden` for a foreign Host or Origin, `unauthorized` without the token, `body_invalid` for other bodies. */
export function guard(options: GuardOptions): MiddlewareHandler {
  return async (context, next) => {
    const { req } = context
    const hosts = ['127.0.0.1', '[::1]', 'localhost'].map((name) => `${name}:${options.port()}`)
    const host = req.header('host')?.toLowerCase()
    if (host === undefined || !hosts.includes(host)) {
      throw new ShoalError('forbidden', `the Host header must be ${hosts.join(' or ')}`)
    }
    checkOrigin(req.header('origin'), req.header('sec-fetch-site'), host)
    if (!options.isOpen(req.path)) checkToken(req.header('authorization'), options.token)
    const type = mediaType(req.header('content-type'))
    const hasBody = req.method !== 'GET' && req.method !== 'DELETE'
    if (hasBody && type !== JSON_TYPE && type !== OCTETS_TYPE) {
      throw new ShoalError('body_invalid', `send the header Content-Type: ${JSON_TYPE}`)
    }
    await next()
  }
}

function checkOrigin(origin: string | undefined, site: string | undefined, host: string): void {
  // An Origin equal to the Host is a page that this server itself served.
  if (origin !== undefined && origin.toLowerCase() !== `http://${host}`) {
    throw new ShoalError('forbidden', 'requests from web pages of another origin are refused')
  }
  if (site !== undefined && site !== 'same-origin' && site !== 'none') {
    throw new ShoalError('forbidden', 'requests from web pages of another site are refused')
  }
}

function checkToken(authorization: string | undefined, token: string): void {
  const [scheme = '', sent = ''] = (authorization ?? '').split(' ')
  // Hashes have one length and are compared in constant time, so timing tells nothing about the token.
  const equal = timingSafeEqual(sha256(sent), sha256(token))
  if (scheme.toLowerCase() !== 'bearer' || !equal) {
    throw new ShoalError(
      'unauthorized',
      'the API token is missing or wrong: send the content of api-token in the data folder',
    )
  }
}

function sha256(text: string): Buffer {
  return createHash('sha256').update(text).digest()
}

/** Without its parameters. */
export function mediaType(contentType: string | undefined): string | undefined {
  return contentType?.split(';')[0]?.trim().toLowerCase()
}
