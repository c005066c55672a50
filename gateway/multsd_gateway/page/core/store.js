// The one place where the page's state lives: views read it, and are told when it changed.

import { NO_HISTORY, afterEdit, redone, undone } from "./undo.js";

/** @typedef {import("./document.js").Document} Document */
/** @typedef {import("./request.js").Note} Note */
/** @typedef {import("../server/api.js").Limits} Limits */

/**
 * A finished picture. id: grows with time; url: of its blob; body: the request that paints it again; warnings: by the
 * request's names.
 * @typedef {{ id: number, blob: Blob, url: string, body: Record<string, any>, warnings: Note[] }} Result
 */

/**
 * A request at work. position: how many wait before it; width, height: of its picture.
 * @typedef {{ phase: "sending" | "queued" | "painting", position: number | null, step: number, steps: number,
 *   width: number, height: number }} Run
 */

/**
 * @typedef {{
 *   document: Document,
 *   begun: number,
 *   history: import("./undo.js").History,
 *   selected: number | null,
 *   tool: "brush" | "eraser" | "rectangle" | "ellipse" | "fill" | "pan",
 *   brush: number,
 *   stroke: boolean,
 *   show: "regions" | "both" | "picture",
 *   limits: Limits | null,
 *   connection: "waiting" | "there" | "lost" | "token",
 *   run: Run | null,
 *   preview: ImageBitmap | null,
 *   results: readonly Result[],
 *   shown: number | null,
 *   errors: readonly Note[],
 *   warnings: readonly Note[],
 *   refused: readonly Note[],
 *   message: { kind: "error" | "note", text: string, lost?: boolean } | null,
 *   saved: "yes" | "no" | "impossible",
 * }} State begun: how many documents took another one's place; selected: a region's id; brush: diameter in pixels;
 *   stroke: whether a tool is down; shown: a result's id; errors, warnings and refused are by the page's own names, see
 *   `request.js`; refused: fields whose text this page itself refuses, until it is another; lost: the message is of a
 *   connection that was lost
 */

/** State, and who is told of it. */
export class Store {
  /** @type {State} */
  #state;
  /** @type {Set<(state: State, before: State) => void>} */
  #listeners = new Set();

  /** @param {Document} document */
  constructor(document) {
    this.#state = {
      document,
      begun: 0,
      history: NO_HISTORY,
      selected: null,
      tool: "brush",
      brush: 48,
      stroke: false,
      show: "both",
      limits: null,
      connection: "waiting",
      run: null,
      preview: null,
      results: [],
      shown: null,
      errors: [],
      warnings: [],
      refused: [],
      message: null,
      saved: "yes",
    };
  }

  get state() {
    return this.#state;
  }

  /** @param {Partial<State>} change */
  update(change) {
    const before = this.#state;
    this.#state = { ...before, ...change };
    for (const listener of this.#listeners) listener(this.#state, before);
  }

  /**
   * Have a function called now and after each change.
   * @param {(state: State, before: State | null) => void} listener
   */
  subscribe(listener) {
    this.#listeners.add(listener);
    listener(this.#state, null);
  }

  /**
   * Change the document, so that it can be undone.
   * @param {(document: Document) => Document} change
   * @param {string | null} [merge] edits in a row with the same name are undone together
   */
  edit(change, merge = null) {
    const { document, history } = this.#state;
    const after = change(document);
    if (after === document) return;
    this.#show(after, afterEdit(history, document, merge));
  }

  /**
   * Begin with a document of somewhere else, so that it can be undone: nothing that was said of the one before holds.
   * @param {Document} document @param {Partial<State>} [change] what else is another now
   */
  begin(document, change = {}) {
    this.edit(() => document);
    const said = { errors: [], warnings: [], refused: [], message: null };
    this.update({ begun: this.#state.begun + 1, selected: document.regions[0]?.id ?? null, ...said, ...change });
  }

  undo() {
    const step = undone(this.#state.history, this.#state.document);
    if (step !== null) this.#step(step);
  }

  redo() {
    const step = redone(this.#state.history, this.#state.document);
    if (step !== null) this.#step(step);
  }

  /** What was refused in a field gives way. @param {{ document: Document, history: import("./undo.js").History }} to */
  #step({ document, history }) {
    this.#show(document, history);
    this.update({ refused: [] });
  }

  /** @param {Document} document @param {import("./undo.js").History} history */
  #show(document, history) {
    const { selected } = this.#state;
    const there = document.regions.some((region) => region.id === selected);
    this.update({ document, history, selected: there ? selected : (document.regions.at(-1)?.id ?? null) });
  }
}
