import { describe } from 'vitest'
import { createMemoryBlobStore, createMemoryRecordStore } from '../../../src/store/memory.ts'
import { testBlobStore, testRecordStore } from './store-contract.ts'

describe('memory records', () => testRecordStore(createMemoryRecordStore))
describe('memory blobs', () => testBlobStore(createMemoryBlobStore))
