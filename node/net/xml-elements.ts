/**
 * Elements of XML that a stranger has written, by name.
 *
 * By plain searches that never go back: a pattern that looks for a begin and for its end takes the square of the
 * length where the ends are missing.
 */

/** What stands in each element of that name, from its first begin to the next end; the name is without a prefix. */
export function* elementsOf(text: string, name: string): Generator<string, void> {
  const begin = `<${name}`
  const end = `</${name}>`
  let from = text.indexOf(begin)
  while (from >= 0) {
    const after = from + begin.length
    const isWhole = /^[\s>]/.test(text.charAt(after))
    const close = isWhole ? text.indexOf('>', after) : after
    const until = isWhole && close >= 0 ? text.indexOf(end, close) : after
    if (close < 0 || until < 0) return
    if (isWhole) yield text.slice(close + 1, until)
    from = text.indexOf(begin, until)
  }
}

/** The first such element that is one word; undefined when there is none. */
export function wordOf(text: string, name: string): string | undefined {
  for (const content of elementsOf(text, name)) {
    const word = content.trim()
    if (/^[^<\s]+$/.test(word)) return word
  }
  return undefined
}
