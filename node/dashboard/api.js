/** The local API as this page uses it. The token is got for the code in the link, and goes nowhere but into a header. */

const KEY = 'shoal-token'
const FILE_CHARACTERS_MAX = 64

/**
 * The token for the code in the link, kept for this tab so that the page can be loaded again; undefined when there is
 * none.
 */
export async function takeToken() {
  const code = codeInLink()
  const kept = sessionStorage.getItem(KEY) ?? undefined
  if (code === undefined) return kept
  // Not left in the address, which people copy and browsers remember.
  history.replaceState(null, '', location.pathname)
  try {
    const headers = { 'content-type': 'application/json' }
    const body = JSON.stringify({ code })
    const answer = await call('/v1/dashboard-token', { method: 'POST', headers, body })
    const { token } = await answer.json()
    keepToken(token)
    return String(token)
  } catch (thrown) {
    // An old link, in a tab that is open already.
    if (kept !== undefined) return kept
    throw thrown
  }
}

/** The code in the address, where a link is opened; undefined where there is none. */
export function codeInLink() {
  return new URLSearchParams(location.hash.slice(1)).get('code') ?? undefined
}

/** @param {string} token */
export function keepToken(token) {
  sessionStorage.setItem(KEY, token)
}

export class ApiFault extends Error {
  /**
   * @param {string} code
   * @param {string} message
   */
  constructor(code, message) {
    super(message)
    this.name = 'ApiFault'
    this.code = code
  }
}

/** @typedef {ReturnType<typeof createApi>} Api */

/** @param {string} token */
export function createApi(token) {
  const headers = { authorization: `Bearer ${token}` }
  return {
    /**
     * What it answers is of this page's own server and version.
     * @template T
     * @param {string} path
     * @returns {Promise<T>}
     */
    get: async (path) => (await call(path, { headers })).json(),
    /**
     * @template T
     * @param {string} path
     * @param {object} body
     * @returns {Promise<T>}
     */
    post: async (path, body) =>
      (
        await call(path, {
          method: 'POST',
          headers: { ...headers, 'content-type': 'application/json' },
          body: JSON.stringify(body),
        })
      ).json(),
    /**
     * Saves an answer as a file.
     * @param {string} path
     * @param {string} name
     */
    async save(path, name) {
      const blob = await (await call(path, { headers })).blob()
      const link = document.createElement('a')
      link.href = URL.createObjectURL(blob)
      link.download = name.slice(0, FILE_CHARACTERS_MAX)
      link.click()
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000)
    },
  }
}

/**
 * @param {string} path
 * @param {RequestInit} init
 */
async function call(path, init) {
  const response = await fetch(path, init).catch(() => {
    throw new ApiFault('daemon_unreachable', 'the daemon does not answer: is it running?')
  })
  if (response.ok) return response
  const problem = await response.json().catch(() => ({}))
  throw new ApiFault(
    String(problem.code ?? 'internal'),
    String(problem.detail ?? `HTTP status ${response.status}`),
  )
}
