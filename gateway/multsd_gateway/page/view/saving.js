// Work in progress is kept as it goes, and found again.

import { Saved } from "../server/saved.js";
import { element } from "./dom.js";

/** @typedef {import("../core/store.js").Store} Store */
/** @typedef {import("../core/store.js").Result} Result */

const SOON_MS = 300;

const WORDS = {
  yes: "Kept in this browser",
  no: "Keeping…",
  impossible: "This browser keeps nothing: the work is lost when the page is closed",
};

/** What keeps the page's work; without a place for it, it only says so. */
export class Keeper {
  /** @param {Store} store */
  constructor(store) {
    this.store = store;
    /** @type {Saved | null} */
    this.saved = null;
    this.touched = false; // whether anything was painted or found so far
    this.timer = 0;
  }

  /** Open the browser's store, and take up what lies there. */
  async start() {
    try {
      this.saved = await Saved.open();
      const [work, results] = [await this.saved.work(), await this.saved.pictures()];
      this.touched = work !== null;
      this.store.update({ ...(work ?? {}), results, shown: results.at(-1)?.id ?? null });
    } catch {
      this.saved = null;
      this.store.update({ saved: "impossible" });
    }
    this.store.subscribe((state, before) => {
      const words = element("saved", HTMLElement);
      words.textContent = WORDS[state.saved];
      words.dataset.saved = state.saved;
      if (before !== null && (state.document !== before.document || state.selected !== before.selected)) this.#later();
    });
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "hidden" && this.store.state.saved === "no") void this.#now();
    });
  }

  /** @param {Result} result */
  async keepPicture(result) {
    await this.#guarded((saved) => saved.keepPicture(result));
  }

  /** @param {number} id */
  async forgetPicture(id) {
    await this.#guarded((saved) => saved.forgetPicture(id));
  }

  #later() {
    this.touched = true;
    if (this.saved === null) return;
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => void this.#now(), SOON_MS);
    if (this.store.state.saved === "yes") this.store.update({ saved: "no" });
  }

  async #now() {
    clearTimeout(this.timer);
    const { document, selected } = this.store.state;
    await this.#guarded((saved) => saved.keep(document, selected));
    const same = this.store.state.document === document && this.store.state.selected === selected;
    if (same && this.saved !== null) this.store.update({ saved: "yes" });
  }

  /**
   * A browser that is full or forbids it keeps nothing more, and the page says so.
   * @param {(saved: Saved) => Promise<void>} write
   */
  async #guarded(write) {
    if (this.saved === null) return;
    try {
      await write(this.saved);
    } catch {
      this.saved = null;
      this.store.update({ saved: "impossible" });
    }
  }
}
