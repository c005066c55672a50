// Work in progress and finished pictures, kept in this browser (IndexedDB).

import { emptyDocument } from "../core/document.js";
import { maskOfRuns, runLengths } from "../core/masks.js";
import { Tab } from "./tab.js";

/** @typedef {import("../core/document.js").Document} Document */
/** @typedef {import("../core/store.js").Result} Result */

const NAME = "multsd";
const VERSION = 1;
const WORK = "work";
const PICTURES = "pictures";
const MAX_WORKS = 8; // of tabs, by now closed or not

/** @template T @param {IDBRequest<T>} request @returns {Promise<T>} */
function answer(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** One browser's saved work: each tab keeps its own, and a new tab begins with what was kept last. */
export class Saved {
  /** @param {IDBDatabase} database */
  constructor(database) {
    this.database = database;
    this.tab = new Tab((name) => this.#copyWork(name));
  }

  /** Throws where the browser keeps nothing, such as in some private windows. @returns {Promise<Saved>} */
  static async open() {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      request.result.createObjectStore(WORK);
      request.result.createObjectStore(PICTURES, { keyPath: "id" });
    };
    return new Saved(await answer(request));
  }

  /** @param {string} store @param {IDBTransactionMode} mode */
  #store(store, mode) {
    return this.database.transaction(store, mode).objectStore(store);
  }

  /** @param {Document} document @param {number | null} selected */
  async keep(document, selected) {
    const regions = document.regions.map(({ mask, ...region }) => ({ ...region, runs: runLengths(mask) }));
    const kept = { ...document, regions, selected, time: Date.now() };
    await answer(this.#store(WORK, "readwrite").put(kept, this.tab.name));
  }

  /** @param {string} name of a tab that goes on with this one's */
  async #copyWork(name) {
    const work = await answer(this.#store(WORK, "readonly").get(this.tab.name));
    if (work !== undefined) await answer(this.#store(WORK, "readwrite").put(work, name));
  }

  /** What this tab kept, else what was kept last; what is older than the last few is dropped. */
  async #kept() {
    const own = await answer(this.#store(WORK, "readonly").get(this.tab.name));
    const [names, works] = await Promise.all([
      answer(this.#store(WORK, "readonly").getAllKeys()),
      answer(this.#store(WORK, "readonly").getAll()),
    ]);
    const latest = works
      .map((work, i) => ({ name: names[i], work }))
      .sort((a, b) => (b.work.time ?? 0) - (a.work.time ?? 0)); // a page of before kept no time
    for (const { name } of latest.slice(MAX_WORKS)) {
      if (name !== this.tab.name) await answer(this.#store(WORK, "readwrite").delete(name));
    }
    return own ?? latest[0]?.work;
  }

  /** @returns {Promise<{ document: Document, selected: number | null } | null>} null where nothing was kept */
  async work() {
    const kept = await this.#kept();
    if (kept === undefined) return null;
    const { selected, time, ...document } = kept;
    const regions = document.regions.map((/** @type {any} */ { runs, ...region }) => ({
      ...region,
      mask: maskOfRuns(runs),
    }));
    // Kept by an earlier page, it may lack a setting.
    const settings = { ...emptyDocument(document.width, document.height).settings, ...document.settings };
    return { document: { ...document, regions, settings }, selected };
  }

  /** @param {Result} result */
  async keepPicture({ url, ...result }) {
    await answer(this.#store(PICTURES, "readwrite").put(result));
  }

  /** @param {number} id */
  async forgetPicture(id) {
    await answer(this.#store(PICTURES, "readwrite").delete(id));
  }

  /** @returns {Promise<Result[]>} oldest first */
  async pictures() {
    const kept = await answer(this.#store(PICTURES, "readonly").getAll());
    return kept.map((result) => ({ ...result, url: URL.createObjectURL(result.blob) }));
  }
}
