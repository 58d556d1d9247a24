/**
 * A synthetic text that every machine makes byte by byte the same: nothing to download, a loss that can be compared.
 *
 * Four topics share a lexicon of 256 syllable words but differ in how often a word occurs and in half of which word
 * follows which. Same text as the reference simulations behind the convergence bars, so that figures can
 * be held against theirs.
 */
import { systemClock } from '../../src/clock.ts'
import { createDataset } from '../../src/data/dataset.ts'
import type { Dataset } from '../../src/data/dataset.ts'
import { createTokenizer } from '../../src/data/tokenizer.ts'
import { mulberry32 } from '../../src/random.ts'

const SEED = 1234
const WORDS = 256
const TOPICS = 4
const TOPIC_CHARACTERS = 60_000
const CONSONANTS = 'bcdfghklmnprstvw'
const VOWELS = 'aeiou'
/** In code-point order. Five letters never occur. */
export const ALPHABET = '\n .abcdefghijklmnopqrstuvwxyz'
/** Share of the text that is held out for validation: the tail of every topic. */
export const VALIDATION_FRACTION = 0.1

interface Dice {
  uniform: () => number
  integer: (bound: number) => number
}

/** The texts of the four topics. */
export function corpusTopics(): string[] {
  const uniform = mulberry32(SEED)
  const dice: Dice = { uniform, integer: (bound) => Math.floor(uniform() * bound) }
  const lexicon = createLexicon(dice)
  const sharedSuccessors = lexicon.map(() => dice.integer(WORDS))
  return Array.from({ length: TOPICS }, () => writeTopic(dice, lexicon, sharedSuccessors))
}

/** The whole text: the topics one after the other, first what is for training of each, then their held-out tails. */
export function corpusText(): string {
  const topics = corpusTopics()
  const trained = TOPIC_CHARACTERS * (1 - VALIDATION_FRACTION)
  return [
    ...topics.map((topic) => topic.slice(0, trained)),
    ...topics.map((topic) => topic.slice(trained)),
  ].join('')
}

/** The corpus as the product reads text: tokens by character, the tail for validation. */
export function corpusDataset(context: number): Promise<Dataset> {
  const tokenizer = createTokenizer({ kind: 'char', vocabulary: ALPHABET.split('') })
  return createDataset(
    new TextEncoder().encode(corpusText()),
    { tokenizer, validationFraction: VALIDATION_FRACTION, context },
    { clock: systemClock },
  )
}

/** For peers that train on one topic each; what is held out is of all topics. */
export function topicShards({ train, validation }: Dataset): Dataset[] {
  const tokens = train.length / TOPICS
  return Array.from({ length: TOPICS }, (_, topic) => ({
    train: train.subarray(topic * tokens, (topic + 1) * tokens),
    validation,
  }))
}

/** Distinct words of one to three syllables. */
function createLexicon({ uniform, integer }: Dice): string[] {
  const consonant = (): string => CONSONANTS.charAt(integer(CONSONANTS.length))
  const lexicon = new Set<string>()
  while (lexicon.size < WORDS) {
    let word = ''
    const syllables = 1 + integer(3)
    for (let syllable = 0; syllable < syllables; syllable++) {
      word += consonant()
      word += VOWELS.charAt(integer(VOWELS.length))
      if (uniform() < 0.3) word += consonant()
    }
    lexicon.add(word)
  }
  return [...lexicon]
}

function writeTopic(
  dice: Dice,
  lexicon: readonly string[],
  sharedSuccessors: readonly number[],
): string {
  const { uniform, integer } = dice
  const draw = createWordLottery(dice)
  const successors = sharedSuccessors.map((shared) => (uniform() < 0.5 ? shared : integer(WORDS)))
  let text = ''
  let word = draw()
  while (text.length < TOPIC_CHARACTERS) {
    text += lexicon[word]!
    const punctuation = uniform()
    if (punctuation < 0.12) {
      text += punctuation < 0.08 ? '. ' : '.\n'
      word = draw()
    } else {
      text += ' '
      word = uniform() < 0.6 ? successors[word]! : draw()
    }
  }
  return text.slice(0, TOPIC_CHARACTERS)
}

/** Draws words by Zipf's law over a ranking of its own. */
function createWordLottery({ uniform, integer }: Dice): () => number {
  const ranking = Array.from({ length: WORDS }, (_, word) => word)
  for (let k = WORDS - 1; k > 0; k--) {
    const other = integer(k + 1)
    const word = ranking[k]!
    ranking[k] = ranking[other]!
    ranking[other] = word
  }
  const cumulated: number[] = []
  let sum = 0
  for (let rank = 0; rank < WORDS; rank++) {
    sum += 1 / (rank + 3)
    cumulated.push(sum)
  }
  return () => {
    const mark = uniform() * sum
    const rank = cumulated.findIndex((upTo) => upTo >= mark)
    return ranking[rank === -1 ? WORDS - 1 : rank]!
  }
}
