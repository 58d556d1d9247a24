/**
 * Builds `dist/`, which the package consists of: Node strips no types under node_modules. Development needs none of it.
 * `npm pack` runs it as `prepack`; where scripts are switched off, as in this repository, `npm run build` does.
 */
import { spawnSync } from 'node:child_process'
import { chmodSync, cpSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { apiReference } from './docs-api.ts'
import { referenceText } from './docs.ts'

const ROOT = join(import.meta.dirname, '..')
const DIST = join(ROOT, 'dist')
rmSync(DIST, { recursive: true, force: true })
const typescript = dirname(createRequire(import.meta.url).resolve('typescript/package.json'))
const options = [join(typescript, 'bin', 'tsc'), '--project', 'tsconfig.build.json']
const { status } = spawnSync(process.execPath, options, { cwd: ROOT, stdio: 'inherit' })
if (status !== 0) process.exit(1)
// The dashboard's page and looks; its scripts are among those that have been built.
const dashboard = join('node', 'dashboard')
for (const name of readdirSync(join(ROOT, dashboard)).filter((file) => !file.endsWith('.js'))) {
  cpSync(join(ROOT, dashboard, name), join(DIST, dashboard, name))
}
// What is read of it at run time; its other fields are those of the package itself.
const { version, type } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'))
writeFileSync(join(DIST, 'package.json'), JSON.stringify({ version, type }))
chmodSync(join(DIST, 'node', 'cli.js'), 0o755)
writeFileSync(join(DIST, 'library.md'), referenceText())
writeFileSync(join(DIST, 'api.md'), `${apiReference()}\n`)
