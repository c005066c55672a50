// The name under which a tab keeps its work: the same after a reload, and no other tab's.

const NAME = "multsd-tab"; // in the tab's own store, which a duplicate, or a tab that was opened from it, has a copy of
const CHANNEL = "multsd-tabs";

/**
 * A tab that begins asks whether its name is another's, who says so. from, to: which page, whatever its name.
 * @typedef {{ ask: string, from: string } | { taken: string, to: string }} Word
 */

/** This tab among the others of the browser. They talk by a channel: locks would need a secure origin. */
export class Tab {
  /** @param {(name: string) => Promise<void>} copy puts what is kept under this tab's name under a new one as well */
  constructor(copy) {
    this.copy = copy;
    this.name = sessionStorage.getItem(NAME) ?? drawn();
    sessionStorage.setItem(NAME, this.name);
    this.page = drawn();
    this.channel = new BroadcastChannel(CHANNEL);
    this.channel.addEventListener("message", ({ data }) => void this.#hear(data));
    this.#say({ ask: this.name, from: this.page });
  }

  /** @param {Word} word */
  #say(word) {
    this.channel.postMessage(word);
  }

  /** @param {Word} word */
  async #hear(word) {
    if ("ask" in word && word.ask === this.name) this.#say({ taken: word.ask, to: word.from });
    if ("taken" in word && word.to === this.page && word.taken === this.name) await this.#rename();
  }

  /** The name is another tab's: the work goes on as a copy. */
  async #rename() {
    const name = drawn();
    await this.copy(name).catch(() => {}); // a browser that keeps nothing more says so at the next change
    this.name = name;
    sessionStorage.setItem(NAME, name);
  }
}

function drawn() {
  return Array.from(crypto.getRandomValues(new Uint32Array(4))).join("-");
}
