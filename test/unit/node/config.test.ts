import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import {
  CONFIG_OPTIONS,
  defaultConfigDir,
  defaultDataDir,
  environmentName,
  flagName,
  loadConfig,
} from '../../../node/config.ts'
import { ShoalError } from '../../../src/errors.ts'

let home: string
let env: NodeJS.ProcessEnv

beforeAll(() => {
  home = mkdtempSync(join(tmpdir(), 'shoal-config-'))
  env = { XDG_CONFIG_HOME: join(home, 'config'), XDG_DATA_HOME: join(home, 'data') }
})
afterAll(() => rmSync(home, { recursive: true, force: true }))

function faultOf(act: () => unknown): ShoalError {
  try {
    act()
  } catch (thrown) {
    if (thrown instanceof ShoalError) return thrown
    throw thrown
  }
  throw new Error('no fault was thrown')
}

function writeConfig(text: string): string {
  const path = join(mkdtempSync(join(home, 'file-')), 'config.toml')
  writeFileSync(path, text)
  return path
}

describe('sources and their precedence', () => {
  test('without any source there are defaults, and ports are left open', () => {
    expect(loadConfig({ env })).toEqual({
      dataDir: join(home, 'data', 'shoal'),
      listen: undefined,
      announce: [],
      bootstrap: [],
      mdns: true,
      network: 'private',
      public: false,
      webPorts: true,
      portMapping: true,
      punch: ['tcp', 'udp', 'webrtc'],
      relay: expect.any(Object),
      upload: { megabitsPerSecond: undefined },
      download: { megabitsPerSecond: undefined },
      api: { port: undefined },
      engine: { backend: 'auto', threads: undefined },
      log: { level: 'info', format: 'auto' },
    })
  })

  test('caps take fractions, from every source, and nothing that would stop all', () => {
    const file = writeConfig('[upload]\nmegabitsPerSecond = 2.5\n')
    const fromFile = loadConfig({ env, file, flags: { 'download.megabitsPerSecond': '0.5' } })
    expect(fromFile.upload.megabitsPerSecond).toBe(2.5)
    expect(fromFile.download.megabitsPerSecond).toBe(0.5)
    const variable = { ...env, SHOAL_UPLOAD_MEGABITS_PER_SECOND: '20' }
    expect(loadConfig({ env: variable, file }).upload.megabitsPerSecond).toBe(20)
    for (const value of ['0', '-1', 'fast', '1e9']) {
      const flags = { 'upload.megabitsPerSecond': value }
      expect(faultOf(() => loadConfig({ env, flags })).message).toContain(
        '--upload-megabits-per-second',
      )
    }
  })

  test('flag beats environment beats file beats default', () => {
    const file = writeConfig(
      '[api]\nport = 1\n[log]\nlevel = "warn"\nformat = "json"\n[engine]\nthreads = 3\n',
    )
    const config = loadConfig({
      flags: { 'api.port': '3' },
      env: { ...env, SHOAL_API_PORT: '2', SHOAL_LOG_LEVEL: 'error' },
      file,
    })
    expect(config.api.port).toBe(3)
    expect(config.log).toEqual({ level: 'error', format: 'json' })
    expect(config.engine.threads).toBe(3)
  })

  test('the default config file is read when it is there', () => {
    const xdg = join(home, 'with-file')
    mkdirSync(join(xdg, 'shoal'), { recursive: true })
    writeFileSync(join(xdg, 'shoal', 'config.toml'), 'mdns = false\n')
    expect(loadConfig({ env: { XDG_CONFIG_HOME: xdg } }).mdns).toBe(false)
    const named = { XDG_CONFIG_HOME: xdg, SHOAL_CONFIG: writeConfig('mdns = true\n') }
    expect(loadConfig({ env: named }).mdns).toBe(true)
  })

  test('lists come from commas in the environment and from repeated flags', () => {
    const bootstrap = ['/ip4/192.0.2.1/tcp/1', '/dns4/example.org/tcp/2']
    expect(
      loadConfig({ env: { ...env, SHOAL_BOOTSTRAP: bootstrap.join(', ') } }).bootstrap,
    ).toEqual(bootstrap)
    expect(loadConfig({ env, flags: { bootstrap } }).bootstrap).toEqual(bootstrap)
  })

  test('switches understand the usual words', () => {
    for (const text of ['0', 'false', 'no', 'off']) {
      expect(loadConfig({ env: { ...env, SHOAL_MDNS: text } }).mdns).toBe(false)
    }
    expect(loadConfig({ env, flags: { mdns: false } }).mdns).toBe(false)
  })

  test('every option has a flag and an environment variable of its own', () => {
    const flags = CONFIG_OPTIONS.map(({ key }) => flagName(key))
    const names = CONFIG_OPTIONS.map(({ key }) => environmentName(key))
    expect(flags).toContain('--api-port')
    expect(names).toContain('SHOAL_DATA_DIR')
    expect(new Set(flags).size).toBe(CONFIG_OPTIONS.length)
    expect(new Set(names).size).toBe(CONFIG_OPTIONS.length)
  })
})

describe('folders', () => {
  test.skipIf(process.platform === 'win32')('follow XDG, whose relative paths are ignored', () => {
    expect(defaultDataDir({ XDG_DATA_HOME: '/x' })).toBe('/x/shoal')
    expect(defaultDataDir({ XDG_DATA_HOME: 'x' })).toMatch(/\.local\/share\/shoal$/)
    expect(defaultConfigDir({ XDG_CONFIG_HOME: 'x' })).toMatch(/\.config\/shoal$/)
  })

  test('a relative data folder is made absolute', () => {
    expect(loadConfig({ env, flags: { dataDir: 'here' } }).dataDir).toBe(
      join(process.cwd(), 'here'),
    )
  })
})

describe('bad input is one line that names source and remedy', () => {
  test.each([
    ['mdsn = true', "unknown key 'mdsn', did you mean 'mdns'?"],
    ['[api]\nprot = 1', "unknown key 'api.prot', did you mean 'port'?"],
    ['[api]\nport = 99999', "'api.port': too big"],
    ['[api]\nport = "4011"', "'api.port': expected number, received string"],
    ['listen = ["here"]', "'listen.0': not a multiaddr"],
    ['mdns = maybe', 'line 1: not valid TOML'],
    ['[engine]\nbackend = "cuda"', "'engine.backend'"],
  ])('file %j', (text, message) => {
    const file = writeConfig(text)
    const fault = faultOf(() => loadConfig({ env, file }))
    expect(fault.code).toBe('config_invalid')
    expect(fault.message).toContain(message)
    expect(fault.message).toContain(file)
    expect(fault.message).not.toContain('\n')
  })

  test('environment and flags are named', () => {
    const misspelt = faultOf(() => loadConfig({ env: { ...env, SHOAL_BOOTSTARP: 'x' } }))
    expect(misspelt.message).toBe(
      'unknown environment variable SHOAL_BOOTSTARP, did you mean SHOAL_BOOTSTRAP?',
    )
    const number = faultOf(() => loadConfig({ env: { ...env, SHOAL_API_PORT: 'high' } }))
    expect(number.message).toBe("environment variable SHOAL_API_PORT: 'high' is not a whole number")
    const address = faultOf(() => loadConfig({ env, flags: { bootstrap: ['example.org'] } }))
    expect(address.message).toContain("--bootstrap: 'bootstrap.0': not a multiaddr")
    const word = faultOf(() => loadConfig({ env: { ...env, SHOAL_MDNS: 'maybe' } }))
    expect(word.message).toContain('neither true nor false')
  })

  test('a config file that was named must be there', () => {
    const fault = faultOf(() => loadConfig({ env, file: join(home, 'absent.toml') }))
    expect(fault.code).toBe('config_invalid')
    expect(fault.message).toContain('does not exist')
  })
})
