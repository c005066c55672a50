// What a tool does to a mask between pressing and letting go, whatever hand it is in.

import { changeRegion, withRegion } from "../core/document.js";
import { copied, floodFill, paintEllipse, paintRectangle, paintStroke } from "../core/masks.js";
import { mended } from "./notes.js";

/** @typedef {import("../core/masks.js").Mask} Mask */
/** @typedef {import("../core/masks.js").Point} Point */
/** @typedef {import("../core/store.js").Store} Store */
/** @typedef {import("../core/store.js").State} State */
/** @typedef {import("../core/document.js").Region} Region */
/** @typedef {import("./canvas.js").CanvasView} CanvasView */

/**
 * Something that was begun. region: as it was then; made: for this, the document has it at the end only; mask: a copy
 * that is painted on; to: where the tool is; show: what was shown before.
 * @typedef {{ tool: State["tool"], region: Region, made: boolean, mask: Mask, value: 0 | 1, from: Point, to: Point,
 *   show: State["show"] }} Work
 */

/** Paints on the selected region; points are of the picture. The document changes only when the tool is lifted. */
export class Strokes {
  /** @type {Work | null} */
  #work = null;

  /** @param {CanvasView} view @param {Store} store */
  constructor(view, store) {
    this.view = view;
    this.store = store;
  }

  /** Whether something was begun that is not finished yet. */
  get open() {
    return this.#work !== null;
  }

  /** Whether that is a rectangle or an ellipse. */
  get shaping() {
    return this.#work !== null && isShape(this.#work.tool);
  }

  /**
   * Put the tool down at a point.
   * @param {Point} at @param {{ erase?: boolean, pressure?: number }} [how] pressure: share of the brush's size
   */
  begin(at, { erase = false, pressure = 1 } = {}) {
    const { tool, show } = this.store.state;
    const value = erase || tool === "eraser" ? 0 : 1;
    const { region, made } = this.#region();
    this.#work = { tool, region, made, mask: copied(region.mask), value, from: at, to: at, show };
    this.view.marks.region = region;
    this.store.update({ stroke: true, show: show === "picture" ? "both" : show });
    if (!this.shaping) this.go(at, { pressure });
  }

  /**
   * Move to a point.
   * @param {Point} at @param {{ pressure?: number, even?: boolean }} [how] even: a square or a circle
   */
  go(at, { pressure = 1, even = false } = {}) {
    const work = this.#work;
    if (work === null) return;
    const { tool, region, mask, value, from, to } = work;
    if (isShape(tool)) {
      work.to = even ? evenCorner(from, at) : at;
      this.view.marks.shape = { kind: tool, from, to: work.to };
    } else if (tool !== "fill") {
      const box = paintStroke(mask, to, at, (this.store.state.brush / 2) * pressure, value);
      work.to = at;
      this.view.layers.touch(region, mask, box);
    }
    this.view.draw();
  }

  /** Lift the tool: what was painted becomes part of the document. */
  finish() {
    const work = this.#work;
    if (work === null || !this.#stands(work)) {
      this.giveUp();
      return;
    }
    this.#putDown();
    if (isShape(work.tool)) paintShape(work);
    else if (work.tool === "fill") this.#fill(work);
    else this.view.layers.settle(work.region.id, work.mask);
    this.#commit(work);
    this.view.draw();
  }

  /** Leave everything as it was before. */
  giveUp() {
    const work = this.#work;
    if (work === null) return;
    this.view.layers.reset(work.region);
    this.#putDown();
    if (work.show === "picture" && this.store.state.show === "both") this.store.update({ show: "picture" });
    this.view.draw();
  }

  #putDown() {
    this.#work = this.view.marks.shape = this.view.marks.region = null;
    this.store.update({ stroke: false });
  }

  /** The region to paint on, made where there is none. @returns {{ region: Region, made: boolean }} */
  #region() {
    const { document, selected } = this.store.state;
    const chosen = document.regions.find((region) => region.id === selected);
    if (chosen !== undefined) return { region: chosen, made: false };
    return { region: /** @type {Region} */ (withRegion(document).regions.at(-1)), made: true };
  }

  /**
   * Whether it can be put into the document: its region is there with the mask that it began with, or has a place.
   * @param {Work} work
   */
  #stands({ region, made, mask }) {
    const { document } = this.store.state;
    const now = document.regions.find((each) => each.id === region.id);
    if (!made) return now?.mask === region.mask;
    return now === undefined && document.width === mask.width && document.height === mask.height;
  }

  /** @param {Work} work */
  #fill({ region, mask, from, value }) {
    const { regions } = this.store.state.document;
    const others = regions.filter((each) => each.id !== region.id && !each.hidden);
    floodFill(
      mask,
      from,
      value,
      others.map((each) => each.mask),
    );
  }

  /** What is painted on is shown from then on; a region of nothing is not made. @param {Work} work */
  #commit({ region, made, mask }) {
    const painted = mask.data.some((value, at) => value !== region.mask.data[at]);
    if (painted && made) this.store.edit((document) => withRegion(document, { ...region, mask }));
    else if (painted) this.store.edit((document) => changeRegion(document, region.id, { hidden: false, mask }));
    else if (region.hidden) this.store.edit((document) => changeRegion(document, region.id, { hidden: false }));
    if (painted) mended(this.store, `region-${region.id}-mask`);
  }
}

/** @param {State["tool"]} tool @returns {tool is "rectangle" | "ellipse"} */
function isShape(tool) {
  return tool === "rectangle" || tool === "ellipse";
}

/** @param {Work} work whose mask is changed */
function paintShape({ tool, mask, from, to, value }) {
  const box = {
    x0: Math.min(from.x, to.x),
    y0: Math.min(from.y, to.y),
    x1: Math.max(from.x, to.x),
    y1: Math.max(from.y, to.y),
  };
  if (tool === "rectangle") paintRectangle(mask, box, value);
  else paintEllipse(mask, box, value);
}

/**
 * The corner that makes both sides as long as the longer one.
 * @param {Point} from @param {Point} to @returns {Point}
 */
function evenCorner(from, to) {
  const [dx, dy] = [to.x - from.x, to.y - from.y];
  const side = Math.max(Math.abs(dx), Math.abs(dy));
  return { x: from.x + Math.sign(dx) * side, y: from.y + Math.sign(dy) * side };
}
