/** Elements without a library. Text is set as text and never parsed: what peers say cannot become markup. */

/** @typedef {Readonly<Record<string, string | number | boolean | undefined>>} Attributes */

const SVG = 'http://www.w3.org/2000/svg'

/**
 * The element with this id, which index.html has.
 * @template {HTMLElement} T
 * @param {string} id
 * @param {new () => T} kind
 * @returns {T}
 */
export function byId(id, kind) {
  const found = document.getElementById(id)
  if (found instanceof kind) return found
  throw new Error(`no ${kind.name} #${id} on the page`)
}

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Attributes} [attributes]
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function html(tag, attributes = {}, ...children) {
  const element = document.createElement(tag)
  setAttributes(element, attributes)
  element.append(...children)
  return element
}

/**
 * @template {keyof SVGElementTagNameMap} K
 * @param {K} tag
 * @param {Attributes} [attributes]
 * @param {...(Node | string)} children
 * @returns {SVGElementTagNameMap[K]}
 */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag)
  setAttributes(element, attributes)
  element.append(...children)
  return element
}

/**
 * @param {Element} element
 * @param {Attributes} attributes
 */
export function setAttributes(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) element.removeAttribute(name)
    else element.setAttribute(name, value === true ? '' : String(value))
  }
}

/**
 * Sets the text only when it is another, so that a screen reader is not told the same again.
 * @param {Element} element
 * @param {string} text
 */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text
}

/**
 * Name and value pairs; those that stay are kept in place.
 * @param {HTMLElement} list a `dl`
 * @param {readonly (readonly [name: string, value: string])[]} pairs
 */
export function setPairs(list, pairs) {
  const known = [...list.children].map((group) => group.firstElementChild?.textContent)
  if (known.length !== pairs.length || pairs.some(([name], index) => known[index] !== name)) {
    list.replaceChildren(
      ...pairs.map(([name]) => html('div', {}, html('dt', {}, name), html('dd'))),
    )
  }
  for (const [index, [, value]] of pairs.entries()) {
    const last = list.children[index]?.lastElementChild
    if (last) setText(last, value)
  }
}

/**
 * A table's head and rows; the caption stays, and so does every cell that says the same as before: who reads it with a
 * screen reader, or has marked something in it, is not thrown out every second. The first cell of a row is its header.
 * @param {HTMLTableElement} table
 * @param {readonly string[]} header
 * @param {readonly (readonly (string | Node)[])[]} rows
 * @param {string} empty
 */
export function setTable(table, header, rows, empty) {
  const head = table.tHead ?? table.createTHead()
  const body = table.tBodies[0] ?? table.createTBody()
  const titles = header.map((name) => html('th', { scope: 'col' }, name))
  setRows(head, [html('tr', {}, ...titles)])
  const none = html('tr', {}, html('td', { colspan: header.length, class: 'empty' }, empty))
  const filled = rows.map(([first = '', ...rest]) =>
    html(
      'tr',
      {},
      html('th', { scope: 'row' }, first),
      ...rest.map((cell) => html('td', {}, cell)),
    ),
  )
  setRows(body, filled.length === 0 ? [none] : filled)
}

/**
 * @param {HTMLTableSectionElement} section
 * @param {readonly HTMLTableRowElement[]} rows
 */
function setRows(section, rows) {
  for (const [index, row] of rows.entries()) {
    const known = section.rows[index]
    if (known === undefined) section.append(row)
    else if (known.cells.length !== row.cells.length) known.replaceWith(row)
    else setCells(known, [...row.cells])
  }
  while (section.rows.length > rows.length) section.deleteRow(-1)
}

/**
 * @param {HTMLTableRowElement} row
 * @param {readonly HTMLTableCellElement[]} cells
 */
function setCells(row, cells) {
  for (const [index, cell] of cells.entries()) {
    const known = row.cells[index]
    if (known !== undefined && !known.isEqualNode(cell)) known.replaceWith(cell)
  }
}
