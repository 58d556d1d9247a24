/** The dialogs that create, join and leave runs. */
import { byId } from './dom.js'

const MODELS = {
  tiny: { layers: 1, heads: 2, embedding: 32, context: 32 },
  small: { layers: 4, heads: 4, embedding: 128, context: 64 },
  medium: { layers: 6, heads: 8, embedding: 256, context: 128 },
}

/**
 * A dialog with a form: `submit` is called with its fields, and what it rejects with is said in the form.
 * @param {string} name
 * @param {(fields: FormData) => Promise<void>} submit
 * @returns {() => void} opens it
 */
export function createDialog(name, submit) {
  const dialog = byId(`${name}-dialog`, HTMLDialogElement)
  const form = byId(`${name}-form`, HTMLFormElement)
  const error = form.querySelector('.error')
  const button = form.querySelector('button[type=submit]')
  form.querySelector('button[value=cancel]')?.addEventListener('click', () => dialog.close())
  /** @param {boolean} isBusy */
  const setBusy = (isBusy) => {
    if (button instanceof HTMLButtonElement) button.disabled = isBusy
    form.setAttribute('aria-busy', String(isBusy))
  }
  form.addEventListener('submit', (event) => {
    event.preventDefault()
    setBusy(true)
    if (error) error.textContent = ''
    submit(new FormData(form))
      .then(() => dialog.close())
      .catch((/** @type {unknown} */ thrown) => {
        if (error) error.textContent = thrown instanceof Error ? thrown.message : String(thrown)
      })
      .finally(() => setBusy(false))
  })
  return () => {
    if (error) error.textContent = ''
    dialog.showModal()
  }
}

/**
 * The spec that the fields of the create dialog say; further fields win.
 * @param {FormData} fields
 * @returns {object}
 */
export function specOf(fields) {
  const more = textOf(fields, 'more')
  const model = Object.entries(MODELS).find(([name]) => name === textOf(fields, 'model'))?.[1]
  const further = more === '' ? {} : parseObject(more)
  return {
    name: textOf(fields, 'name'),
    data: textOf(fields, 'data'),
    public: fields.has('public'),
    shareData: fields.has('shareData'),
    outerSteps: Number(textOf(fields, 'outerSteps')),
    innerSteps: Number(textOf(fields, 'innerSteps')),
    ...further,
    model: { ...model, ...objectOf(further, 'model') },
    limits: { minPeers: Number(textOf(fields, 'minPeers')), ...objectOf(further, 'limits') },
  }
}

/**
 * @param {FormData} fields
 * @param {string} name
 */
export function textOf(fields, name) {
  const value = fields.get(name)
  return typeof value === 'string' ? value.trim() : ''
}

/**
 * @param {string} text
 * @returns {Record<string, unknown>}
 */
function parseObject(text) {
  /** @type {unknown} */
  let value
  try {
    value = JSON.parse(text)
  } catch {
    value = undefined
  }
  if (isObject(value)) return value
  throw new Error(
    'the further fields are not a JSON object such as {"inner": {"learningRate": 0.003}}',
  )
}

/**
 * @param {Record<string, unknown>} fields
 * @param {string} name
 */
function objectOf(fields, name) {
  const value = fields[name]
  return isObject(value) ? value : {}
}

/**
 * @param {unknown} value
 * @returns {value is Record<string, unknown>}
 */
function isObject(value) {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
