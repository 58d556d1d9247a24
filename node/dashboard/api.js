/** The local API as this page uses it. The token comes from the link's fragment and goes nowhere but into a header. */

const KEY = 'shoal-token'
const FILE_CHARACTERS_MAX = 64

/** The token of the link, kept for this tab so that the page can be loaded again; undefined when there is none. */
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get('token')
  if (given !== null) {
    sessionStorage.setItem(KEY, given)
    // Not left in the address, which people copy and browsers remember.
    history.replaceState(null, '', location.pathname)
  }
  return sessionStorage.getItem(KEY) ?? undefined
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
