/** The dashboard: asks the node every second, and shows what it says. */
import { ApiFault, codeInLink, createApi, keepToken, takeToken } from './api.js'
import { createDialog, specOf, textOf } from './dialogs.js'
import { byId, html, setPairs, setText } from './dom.js'
import { bytes, duration, integer, shortPeer } from './format.js'
import { createHistory } from './history.js'
import { createRunPanel } from './run-panel.js'
import { showLinks } from './tables.js'

/** @import { Link } from '../../src/net/network.ts' */
/** @import { NodeStatus } from '../../src/node.ts' */
/** @import { Manifest } from '../../src/run/manifest.ts' */
/** @import { RunListing, RunView } from '../../src/run/view.ts' */
/** @import { Api } from './api.js' */

const REFRESH_MS = 1_000
/** Of a page that nobody looks at. */
const HIDDEN_REFRESH_MS = 10_000
const TOAST_MS = 6_000

/** @typedef {{ id: string, history: ReturnType<typeof createHistory>, admins: readonly string[] }} Selected */

/**
 * @typedef {object} Page
 * @property {Api} api
 * @property {Selected | undefined} selected
 * @property {RunView | undefined} view
 * @property {() => Promise<void>} refresh
 */

begin().catch((/** @type {unknown} */ thrown) => askForToken(messageOf(thrown)))

async function begin() {
  // A link that is opened in a tab where this page is already.
  addEventListener('hashchange', () => {
    if (codeInLink() !== undefined) location.reload()
  })
  const token = await takeToken()
  if (token === undefined) askForToken()
  else start(token)
}

/** @param {string} [why] what was wrong with the link */
function askForToken(why = '') {
  byId('layout', HTMLElement).hidden = true
  setText(byId('token-error', HTMLElement), why)
  const form = byId('token-form', HTMLFormElement)
  form.hidden = false
  byId('token-input', HTMLInputElement).focus()
  setText(byId('connection', HTMLElement), 'no token')
  form.addEventListener('submit', (event) => {
    event.preventDefault()
    keepToken(byId('token-input', HTMLInputElement).value.trim())
    location.reload()
  })
}

/** @param {string} given */
function start(given) {
  const api = createApi(given)
  byId('layout', HTMLElement).hidden = false
  const showRun = createRunPanel((cid, file) => {
    const run = page.selected?.id
    if (run === undefined) return
    toast(`downloading ${file}…`)
    api
      .save(`/v1/runs/${run}/checkpoints/${cid}/files/${file}`, file)
      .then(() => toast(`${file} is saved`))
      .catch(tell)
  })
  /** @type {Page} */
  const page = { api, selected: undefined, view: undefined, refresh: () => refresh(page, showRun) }
  listen(page)
  void follow(page)
}

/** @param {Page} page */
async function follow(page) {
  const connection = byId('connection', HTMLElement)
  for (;;) {
    try {
      await page.refresh()
      setText(connection, 'connected')
      connection.className = 'good'
    } catch (thrown) {
      if (thrown instanceof ApiFault && thrown.code === 'unauthorized') {
        sessionStorage.clear()
        askForToken('That was not the token of this node.')
        return
      }
      setText(connection, messageOf(thrown))
      connection.className = 'bad'
    }
    await new Promise((resolve) =>
      setTimeout(resolve, document.hidden ? HIDDEN_REFRESH_MS : REFRESH_MS),
    )
  }
}

/**
 * @param {Page} page
 * @param {ReturnType<typeof createRunPanel>} showRun
 */
async function refresh(page, showRun) {
  const { api } = page
  /** @type {[NodeStatus & { version: string }, { peers: Link[] }, { runs: RunListing[] }]} */
  const [node, { peers }, { runs }] = await Promise.all([
    api.get('/v1/node'),
    api.get('/v1/peers'),
    api.get('/v1/runs'),
  ])
  showNode(node)
  showLinks(byId('links', HTMLTableElement), peers)
  await select(page, runs)
  showRuns(runs, page)
  const { selected } = page
  byId('run', HTMLElement).hidden = selected === undefined
  byId('no-run', HTMLElement).hidden = selected !== undefined
  if (selected === undefined) return
  /** @type {[RunView, void]} */
  const [view] = await Promise.all([api.get(`/v1/runs/${selected.id}`), selected.history.refresh()])
  if (page.selected !== selected) return
  page.view = view
  const isAdmin = selected.admins.includes(node.peerId)
  showRun({ view, history: selected.history.all, links: peers, isAdmin, self: node.peerId })
  document.title = `${view.name}: ${view.status} ${view.outerStep}/${view.outerSteps} · Shoal`
}

/**
 * The run that the address names, else the first.
 * @param {Page} page
 * @param {readonly RunListing[]} runs
 */
async function select(page, runs) {
  const wanted = new URLSearchParams(location.hash.slice(1)).get('run')
  const found = runs.find(({ id }) => id === wanted) ?? runs[0]
  if (found === undefined) page.selected = undefined
  if (found === undefined || found.id === page.selected?.id) return
  /** @type {Manifest} */
  const { admins } = await page.api.get(`/v1/runs/${found.id}/manifest`)
  page.selected = { id: found.id, history: createHistory(page.api, found.id), admins }
}

/** @param {NodeStatus & { version: string }} node */
function showNode(node) {
  const { counters } = node
  const sent = counters['network_bytes_sent_total'] ?? 0
  const received = counters['network_bytes_received_total'] ?? 0
  setPairs(byId('node-facts', HTMLElement), [
    ['node', shortPeer(node.peerId)],
    ['reachability', node.reachability],
    ['NAT', node.nat],
    ['peers', String(node.links)],
    ...relayFacts(node),
    ['engine', node.engine],
    ['network', `↑ ${bytes(sent)} ↓ ${bytes(received)}`],
    ['up for', duration(node.uptimeMs)],
    ['version', node.version],
  ])
}

/**
 * How others reach this node, and what it carries for them.
 * @param {NodeStatus} node
 * @returns {[string, string][]}
 */
function relayFacts({ relays, relaying }) {
  /** @type {[string, string][]} */
  const facts = relays.length === 0 ? [] : [['relays', relays.map(shortPeer).join(' ')]]
  if (relaying !== null) {
    const { circuits, bytes: carried } = relaying.use
    facts.push(['relays for others', `${circuits} connections, ${bytes(carried)} so far`])
  }
  return facts
}

/**
 * @param {readonly RunListing[]} runs
 * @param {Page} page
 */
function showRuns(runs, page) {
  const list = byId('runs', HTMLElement)
  const signature = JSON.stringify(runs.map(({ id, name }) => [id, name]))
  if (list.dataset['signature'] !== signature) {
    list.dataset['signature'] = signature
    list.replaceChildren(...runs.map((run) => html('li', {}, runButton(run, page))))
  }
  for (const [index, run] of runs.entries()) {
    const button = list.children[index]?.firstElementChild
    if (!(button instanceof HTMLButtonElement)) continue
    if (run.id === page.selected?.id) button.setAttribute('aria-current', 'true')
    else button.removeAttribute('aria-current')
    const state = button.lastElementChild
    const peers = `${run.peers} ${run.peers === 1 ? 'peer' : 'peers'}`
    if (state) setText(state, `${run.status ?? ''} ${run.outerStep}/${run.outerSteps}, ${peers}`)
  }
}

/**
 * @param {RunListing} run
 * @param {Page} page
 */
function runButton(run, page) {
  const button = html(
    'button',
    { type: 'button', class: 'run' },
    html('span', {}, run.name),
    html('small'),
  )
  button.addEventListener('click', () => show(run.id, page))
  return button
}

/**
 * @param {string} run
 * @param {Page} page
 */
function show(run, page) {
  location.hash = new URLSearchParams({ run }).toString()
  page.refresh().catch(tell)
}

/** @param {Page} page */
function listen(page) {
  const { api } = page
  const opened = (/** @type {RunView} */ { id }) => show(id, page)
  const openCreate = createDialog('create', async (fields) => {
    opened(await api.post('/v1/runs', { spec: specOf(fields) }))
  })
  const openJoin = createDialog('join', async (fields) => {
    const data = textOf(fields, 'data')
    const input = { run: textOf(fields, 'run'), ...(data !== '' && { data }) }
    opened(await api.post('/v1/runs/join', input))
  })
  /** The run that the open dialog names, whatever is shown meanwhile. */
  let leaving = ''
  const openLeave = createDialog('leave', async () => {
    await api.post(`/v1/runs/${leaving}/leave`, {})
    await page.refresh()
  })
  // Followed as a link it would put another fragment in the place of the one that names the run.
  document.querySelector('.skip')?.addEventListener('click', (event) => {
    event.preventDefault()
    byId('main', HTMLElement).focus()
  })
  onClick('open-create', openCreate)
  onClick('open-join', openJoin)
  onClick('leave', () => {
    const { view } = page
    if (view === undefined) return
    leaving = view.id
    setText(byId('leave-title', HTMLElement), `Leave the run "${view.name}"?`)
    openLeave()
  })
  onClick('discover', () => discover(page, opened))
  onClick('invite', async () => {
    /** @type {{ link: string }} */
    const { link } = await api.get(`/v1/runs/${page.selected?.id}/invite`)
    await navigator.clipboard.writeText(link)
    toast('The link is in the clipboard: send it to those who shall join.')
  })
  onClick('pause', async () => {
    const value = page.view?.board['paused'] !== true
    await api.post(`/v1/runs/${page.selected?.id}/board`, { key: 'paused', value })
    await page.refresh()
  })
  byId('board-form', HTMLFormElement).addEventListener('submit', (event) => {
    event.preventDefault()
    writeBoard(page).catch(tell)
  })
}

/** @param {Page} page */
async function writeBoard(page) {
  const key = byId('board-key', HTMLInputElement)
  const value = byId('board-value', HTMLInputElement)
  const entry = { key: key.value, ...(value.value !== '' && { value: value.value }) }
  await page.api.post(`/v1/runs/${page.selected?.id}/board`, entry)
  key.value = ''
  value.value = ''
  await page.refresh()
}

/**
 * @param {Page} page
 * @param {(view: RunView) => void} opened
 */
async function discover(page, opened) {
  const place = byId('found', HTMLElement)
  setText(place, 'looking…')
  /** @type {{ runs: RunListing[] }} */
  const { runs } = await page.api.get('/v1/runs?discover=true')
  const others = runs.filter(({ status }) => status === null)
  const buttons = others.map((run) => {
    const facts = `${run.outerStep}/${run.outerSteps}, ${integer(run.parameters)} parameters`
    const label = `Join ${run.name} (${facts})`
    const button = html('button', { type: 'button', class: 'run' }, label)
    button.addEventListener('click', () => {
      join(page, run.id).then(opened).catch(tell)
    })
    return button
  })
  place.replaceChildren(...(buttons.length === 0 ? ['No other public runs found.'] : buttons))
}

/**
 * @param {Page} page
 * @param {string} run
 * @returns {Promise<RunView>}
 */
function join(page, run) {
  return page.api.post('/v1/runs/join', { run })
}

/**
 * @param {string} id
 * @param {() => void | Promise<void>} act
 */
function onClick(id, act) {
  const button = byId(id, HTMLButtonElement)
  button.addEventListener('click', () => {
    Promise.resolve(act()).catch(tell)
  })
}

/** @param {unknown} thrown */
function tell(thrown) {
  toast(messageOf(thrown))
}

/** @param {unknown} thrown */
function messageOf(thrown) {
  return thrown instanceof Error ? thrown.message : String(thrown)
}

let toasts = 0

/** @param {string} text */
function toast(text) {
  const place = byId('toast', HTMLElement)
  setText(place, text)
  const number = ++toasts
  setTimeout(() => {
    if (toasts === number) setText(place, '')
  }, TOAST_MS)
}
