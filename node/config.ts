/**
 * This node's local settings. Precedence: flag > environment `SHOAL_X` > config file > default.
 *
 * One strict schema reads all sources, so that a misspelt key is a fault wherever it stands. The daemon never
 * writes the config file: what it has to remember lives in the data folder.
 */
import { readFileSync, statSync } from 'node:fs'
import { homedir } from 'node:os'
import { isAbsolute, join, resolve } from 'node:path'
import { multiaddr } from '@multiformats/multiaddr'
import { parse as parseToml } from 'smol-toml'
import { z } from 'zod'
import { ShoalError, messageOf } from '../src/errors.ts'
import type { RelayLimits } from '../src/net/relay-server.ts'
import { nearest, parseInput } from './validation.ts'

/** A config file is a few dozen lines written by hand. */
const CONFIG_BYTES_MAX = 64 << 10

const address = z.string().refine(isMultiaddr, {
  message: 'not a multiaddr such as /ip4/192.0.2.1/tcp/4010',
})
const addresses = z.array(address).max(64)

/** A slow uplink has 0.5 Mbit/s, of which something must be left. */
const rate = z.number().min(0.1).max(100_000)

/** Ways through NATs, cheapest first. */
const PUNCHES = ['tcp', 'udp', 'webrtc'] as const

const configSchema = z.strictObject({
  dataDir: z.string().min(1).optional(),
  listen: addresses.min(1).optional(),
  announce: addresses.optional(),
  bootstrap: addresses.optional(),
  mdns: z.boolean().optional(),
  network: z.enum(['public', 'private', 'lan']).optional(),
  public: z.boolean().optional(),
  webPorts: z.boolean().optional(),
  portMapping: z.boolean().optional(),
  punch: z.array(z.enum(PUNCHES)).max(PUNCHES.length).optional(),
  relay: z
    .strictObject({
      reservations: z.int().min(0).max(4096).optional(),
      circuits: z.int().min(0).max(4096).optional(),
      circuitMegabytes: z.int().min(1).max(1_000_000).optional(),
      circuitMinutes: z.int().min(1).max(1440).optional(),
      megabitsPerSecond: z.int().min(1).max(100_000).optional(),
    })
    .optional(),
  upload: z.strictObject({ megabitsPerSecond: rate.optional() }).optional(),
  download: z.strictObject({ megabitsPerSecond: rate.optional() }).optional(),
  api: z.strictObject({ port: z.int().min(0).max(65_535).optional() }).optional(),
  engine: z
    .strictObject({
      backend: z.enum(['auto', 'native', 'wasm']).optional(),
      threads: z.int().min(1).max(256).optional(),
    })
    .optional(),
  log: z
    .strictObject({
      level: z.enum(['debug', 'info', 'warn', 'error', 'silent']).optional(),
      format: z.enum(['auto', 'pretty', 'json']).optional(),
    })
    .optional(),
})
type ConfigLayer = z.infer<typeof configSchema>

type OptionKind = 'text' | 'list' | 'switch' | 'integer' | 'number'

interface ConfigOption {
  /** Path in the schema and the file, dots between. */
  key: string
  kind: OptionKind
  /** Name of the value in `--help`. */
  value?: string
  summary: string
}

/** Every setting; flags, environment variables and the file's keys derive from this list. */
export const CONFIG_OPTIONS: readonly ConfigOption[] = [
  {
    key: 'dataDir',
    kind: 'text',
    value: 'path',
    summary: 'folder of identity, runs and checkpoints',
  },
  {
    key: 'listen',
    kind: 'list',
    value: 'multiaddr',
    summary: 'address to listen on, repeatable (default port 4010 by IPv4 and IPv6)',
  },
  {
    key: 'announce',
    kind: 'list',
    value: 'multiaddr',
    summary: 'address told to other peers, repeatable (default: what is listened on)',
  },
  {
    key: 'bootstrap',
    kind: 'list',
    value: 'multiaddr',
    summary: 'first contact to try, repeatable; DNS names too: /dns4/example.org/tcp/4010',
  },
  { key: 'mdns', kind: 'switch', summary: 'find peers on the local network (default on)' },
  {
    key: 'network',
    kind: 'text',
    value: 'name',
    summary: 'private: our own DHT; public: that of IPFS; lan: nobody beyond (default private)',
  },
  {
    key: 'public',
    kind: 'switch',
    summary: 'this machine can be dialled by anybody: serve as bootstrap, relay and reflector',
  },
  {
    key: 'webPorts',
    kind: 'switch',
    summary: 'with --public: listen on 443 and, by WebSocket, on 80 too, if free (default on)',
  },
  {
    key: 'portMapping',
    kind: 'switch',
    summary:
      'ask the router to forward the port that is listened on, by PCP, NAT-PMP or UPnP (default on)',
  },
  {
    key: 'punch',
    kind: 'list',
    value: 'way',
    summary: 'way through NATs that is tried, repeatable: tcp, udp, webrtc (default all)',
  },
  {
    key: 'relay.reservations',
    kind: 'integer',
    value: 'number',
    summary: 'with --public: peers reachable through this node (default 128)',
  },
  {
    key: 'relay.circuits',
    kind: 'integer',
    value: 'number',
    summary: 'with --public: connections carried at once (default 256)',
  },
  {
    key: 'relay.circuitMegabytes',
    kind: 'integer',
    value: 'number',
    summary: 'with --public: the most that one of them carries (default 4096)',
  },
  {
    key: 'relay.circuitMinutes',
    kind: 'integer',
    value: 'number',
    summary: 'with --public: the longest that one of them lasts (default 240)',
  },
  {
    key: 'relay.megabitsPerSecond',
    kind: 'integer',
    value: 'number',
    summary: 'with --public: rate of all of them together, shared fairly (default 200)',
  },
  {
    key: 'upload.megabitsPerSecond',
    kind: 'number',
    value: 'number',
    summary: 'cap on what is sent to all peers together, shared fairly (default none)',
  },
  {
    key: 'download.megabitsPerSecond',
    kind: 'number',
    value: 'number',
    summary: 'cap on what is received from all peers together (default none)',
  },
  {
    key: 'api.port',
    kind: 'integer',
    value: 'number',
    summary: 'port of the local API, 0 = any free one (default 4011)',
  },
  {
    key: 'engine.backend',
    kind: 'text',
    value: 'name',
    summary: 'auto, native or wasm (default auto)',
  },
  {
    key: 'engine.threads',
    kind: 'integer',
    value: 'number',
    summary: 'threads that train (default: all cores but one)',
  },
  {
    key: 'log.level',
    kind: 'text',
    value: 'name',
    summary: 'debug, info, warn, error or silent (default info)',
  },
  {
    key: 'log.format',
    kind: 'text',
    value: 'name',
    summary: 'auto, pretty or json (default auto: pretty on a terminal)',
  },
]

export interface Config {
  dataDir: string
  /** Undefined when not given: then the default port, or a free one when it is taken. */
  listen: string[] | undefined
  announce: string[]
  bootstrap: string[]
  mdns: boolean
  network: 'public' | 'private' | 'lan'
  public: boolean
  webPorts: boolean
  portMapping: boolean
  /** Ways through NATs that are tried. */
  punch: readonly (typeof PUNCHES)[number][]
  /** What a public node carries for others. */
  relay: RelayLimits
  /** Caps; undefined: none. */
  upload: { megabitsPerSecond: number | undefined }
  download: { megabitsPerSecond: number | undefined }
  api: {
    /** Undefined when not given: then the default port, or a free one when it is taken. */
    port: number | undefined
  }
  engine: { backend: 'auto' | 'native' | 'wasm'; threads: number | undefined }
  log: {
    level: 'debug' | 'info' | 'warn' | 'error' | 'silent'
    format: 'auto' | 'pretty' | 'json'
  }
}

export interface ConfigSources {
  /** Values of flags by option key, as typed. */
  flags?: Readonly<Record<string, unknown>>
  /** Config file; without it the default one, if there is any. */
  file?: string | undefined
  env?: NodeJS.ProcessEnv
}

/** Throws `config_invalid` naming the flag, variable or file and key, with a suggestion for a misspelt one. */
export function loadConfig(sources: ConfigSources = {}): Config {
  const env = sources.env ?? process.env
  const file = sources.file ?? env['SHOAL_CONFIG']
  const layers = [
    flagLayer(sources.flags ?? {}),
    environmentLayer(env),
    fileLayer(file ?? join(defaultConfigDir(env), 'config.toml'), file !== undefined),
  ]
  const first = <T>(pick: (layer: ConfigLayer) => T | undefined): T | undefined =>
    layers.map(pick).find((value) => value !== undefined)
  return {
    dataDir: resolve(first((layer) => layer.dataDir) ?? defaultDataDir(env)),
    listen: first((layer) => layer.listen),
    announce: first((layer) => layer.announce) ?? [],
    bootstrap: first((layer) => layer.bootstrap) ?? [],
    mdns: first((layer) => layer.mdns) ?? true,
    network: first((layer) => layer.network) ?? 'private',
    public: first((layer) => layer.public) ?? false,
    webPorts: first((layer) => layer.webPorts) ?? true,
    portMapping: first((layer) => layer.portMapping) ?? true,
    punch: first((layer) => layer.punch) ?? PUNCHES,
    relay: relayLimits((key) => first((layer) => layer.relay?.[key])),
    upload: { megabitsPerSecond: first((layer) => layer.upload?.megabitsPerSecond) },
    download: { megabitsPerSecond: first((layer) => layer.download?.megabitsPerSecond) },
    api: { port: first((layer) => layer.api?.port) },
    engine: {
      backend: first((layer) => layer.engine?.backend) ?? 'auto',
      threads: first((layer) => layer.engine?.threads),
    },
    log: {
      level: first((layer) => layer.log?.level) ?? 'info',
      format: first((layer) => layer.log?.format) ?? 'auto',
    },
  }
}

/** Sized for a small rented server: at 200 Mbit/s relaying costs it about a quarter of a core. */
function relayLimits(
  given: (key: keyof NonNullable<ConfigLayer['relay']>) => number | undefined,
): RelayLimits {
  const circuits = given('circuits') ?? 256
  return {
    reservations: given('reservations') ?? 128,
    circuits,
    // Two lanes of traffic and their replacements to each member of a group.
    circuitsPerPeer: Math.min(circuits, 32),
    circuitBytes: (given('circuitMegabytes') ?? 4096) * 1e6,
    circuitMs: (given('circuitMinutes') ?? 240) * 60_000,
    bytesPerSecond: ((given('megabitsPerSecond') ?? 200) * 1e6) / 8,
  }
}

/** `api.port` as the command line writes it: `--api-port`. */
export function flagName(key: string): string {
  return `--${words(key).join('-')}`
}

/** `api.port` as the environment writes it: `SHOAL_API_PORT`. */
export function environmentName(key: string): string {
  return `SHOAL_${words(key).join('_').toUpperCase()}`
}

function words(key: string): string[] {
  return key.split(/\.|(?=[A-Z])/).map((word) => word.toLowerCase())
}

function flagLayer(flags: Readonly<Record<string, unknown>>): ConfigLayer {
  return Object.entries(flags).reduce<ConfigLayer>((layer, [key, value]) => {
    const option = CONFIG_OPTIONS.find((candidate) => candidate.key === key)
    if (option === undefined || value === undefined) return layer
    return withOption(layer, option, value, flagName(key))
  }, {})
}

function environmentLayer(env: NodeJS.ProcessEnv): ConfigLayer {
  const names = new Map(CONFIG_OPTIONS.map((option) => [environmentName(option.key), option]))
  let layer: ConfigLayer = {}
  for (const [name, value] of Object.entries(env)) {
    if (!name.startsWith('SHOAL_') || name === 'SHOAL_CONFIG' || value === undefined) continue
    const option = names.get(name)
    if (option === undefined) {
      const guess = nearest(name, [...names.keys(), 'SHOAL_CONFIG'])
      throw new ShoalError(
        'config_invalid',
        `unknown environment variable ${name}${guess === undefined ? '' : `, did you mean ${guess}?`}`,
      )
    }
    layer = withOption(layer, option, value, `environment variable ${name}`)
  }
  return layer
}

/** Adds one value to a layer, parsed and checked alone so that a fault can name where it came from. */
function withOption(
  layer: ConfigLayer,
  option: ConfigOption,
  value: unknown,
  source: string,
): ConfigLayer {
  const typed = typeof value === 'string' ? fromText(option.kind, value, source) : value
  const [head = '', tail] = option.key.split('.')
  const nested = tail === undefined ? { [head]: typed } : { [head]: { [tail]: typed } }
  const parsed = parseInput(configSchema, nested, 'config_invalid', source)
  return {
    ...layer,
    ...parsed,
    ...(parsed.relay && { relay: { ...layer.relay, ...parsed.relay } }),
    ...(parsed.upload && { upload: { ...layer.upload, ...parsed.upload } }),
    ...(parsed.download && { download: { ...layer.download, ...parsed.download } }),
    ...(parsed.api && { api: { ...layer.api, ...parsed.api } }),
    ...(parsed.engine && { engine: { ...layer.engine, ...parsed.engine } }),
    ...(parsed.log && { log: { ...layer.log, ...parsed.log } }),
  }
}

function fromText(kind: OptionKind, text: string, source: string): unknown {
  switch (kind) {
    case 'text':
      return text
    case 'list':
      return text
        .split(',')
        .map((part) => part.trim())
        .filter((part) => part !== '')
    case 'switch':
      if (['true', '1', 'yes', 'on'].includes(text)) return true
      if (['false', '0', 'no', 'off'].includes(text)) return false
      throw new ShoalError('config_invalid', `${source}: '${text}' is neither true nor false`)
    case 'integer':
      if (/^\d{1,9}$/.test(text)) return Number(text)
      throw new ShoalError('config_invalid', `${source}: '${text}' is not a whole number`)
    case 'number':
      if (/^\d{1,9}(\.\d{1,9})?$/.test(text)) return Number(text)
      throw new ShoalError('config_invalid', `${source}: '${text}' is not a number`)
    default:
      return kind satisfies never
  }
}

function fileLayer(path: string, required: boolean): ConfigLayer {
  let text: string
  try {
    const { size } = statSync(path)
    if (size > CONFIG_BYTES_MAX) {
      throw new ShoalError('config_invalid', `${path} is larger than ${CONFIG_BYTES_MAX} bytes`)
    }
    text = readFileSync(path, 'utf8')
  } catch (cause) {
    if (cause instanceof ShoalError) throw cause
    const absent = cause instanceof Error && 'code' in cause && cause.code === 'ENOENT'
    if (absent && !required) return {}
    const why = absent ? 'does not exist' : `cannot be read (${messageOf(cause)})`
    throw new ShoalError('config_invalid', `config file ${path} ${why}`, { cause })
  }
  return parseInput(
    configSchema,
    parseTomlText(text, path, 'config_invalid'),
    'config_invalid',
    path,
  )
}

/** TOML, with faults that name file and line. */
export function parseTomlText(
  text: string,
  path: string,
  code: 'config_invalid' | 'spec_invalid',
): unknown {
  try {
    return parseToml(text)
  } catch (cause) {
    const line = cause instanceof Error && 'line' in cause ? ` line ${String(cause.line)}` : ''
    const [what = ''] = messageOf(cause).split('\n')
    const why = what.replace(/^Invalid TOML document: /, '')
    throw new ShoalError(code, `${path}${line}: not valid TOML (${why})`, { cause })
  }
}

/** `$XDG_CONFIG_HOME/shoal` or `~/.config/shoal`; `%APPDATA%\shoal` on Windows. */
export function defaultConfigDir(env: NodeJS.ProcessEnv = process.env): string {
  if (process.platform === 'win32') return join(env['APPDATA'] ?? homedir(), 'shoal')
  return join(absolute(env['XDG_CONFIG_HOME']) ?? join(homedir(), '.config'), 'shoal')
}

/** `$XDG_DATA_HOME/shoal` or `~/.local/share/shoal`; `%LOCALAPPDATA%\shoal` on Windows. */
export function defaultDataDir(env: NodeJS.ProcessEnv = process.env): string {
  if (process.platform === 'win32') return join(env['LOCALAPPDATA'] ?? homedir(), 'shoal')
  return join(absolute(env['XDG_DATA_HOME']) ?? join(homedir(), '.local', 'share'), 'shoal')
}

/** The XDG specification has relative paths in its variables ignored. */
function absolute(path: string | undefined): string | undefined {
  return path !== undefined && isAbsolute(path) ? path : undefined
}

function isMultiaddr(text: string): boolean {
  try {
    multiaddr(text)
    return text.startsWith('/')
  } catch {
    return false
  }
}
