// What a tool does to a mask between pressing and letting go, whatever hand it is in.

import { changeRegion, withRegion } from "../core/document.js";
import { copied, floodFill, paintEllipse, paintRectangle, paintStroke } from "../core/masks.js";
import { mended } from "./notes.js";

/** @typedef {import("../core/masks.js").Mask} Mask */
/** @typedef {import("../core/masks.js").Point} Point */
/** @typedef {import("../core/store.js").Store} Store */
/** @typedef {import("../core/document.js").Region} Region */
/** @typedef {import("./canvas.js").CanvasView} CanvasView */

/** @typedef {{ region: Region, mask: Mask, value: 0 | 1, last: Point }} Stroke mask: being changed */
/** @typedef {{ kind: "rectangle" | "ellipse", from: Point, to: Point, value: 0 | 1 }} Shape */

/** Paints on the selected region; points are of the picture. */
export class Strokes {
  /** @type {Stroke | null} */
  #stroke = null;
  /** @type {Shape | null} */
  #shape = null;

  /** @param {CanvasView} view @param {Store} store */
  constructor(view, store) {
    this.view = view;
    this.store = store;
  }

  /** Whether something was begun that is not finished yet. */
  get open() {
    return this.#stroke !== null || this.#shape !== null;
  }

  /** Whether that is a rectangle or an ellipse. */
  get shaping() {
    return this.#shape !== null;
  }

  /**
   * Put the tool down at a point; the fill is done with that.
   * @param {Point} at @param {{ erase?: boolean, pressure?: number }} [how] pressure: share of the brush's size
   */
  begin(at, { erase = false, pressure = 1 } = {}) {
    const { tool } = this.store.state;
    const value = erase || tool === "eraser" ? 0 : 1;
    const region = this.#region();
    if (this.store.state.show === "picture") this.store.update({ show: "both" });
    this.store.update({ stroke: tool !== "fill" });
    if (tool === "rectangle" || tool === "ellipse") {
      this.#shape = { kind: tool, from: at, to: at, value };
    } else if (tool === "fill") {
      this.#fill(region, at, value);
    } else {
      this.#stroke = { region, mask: copied(region.mask), value, last: at };
      this.go(at, { pressure });
    }
  }

  /**
   * Move to a point.
   * @param {Point} at @param {{ pressure?: number, even?: boolean }} [how] even: a square or a circle
   */
  go(at, { pressure = 1, even = false } = {}) {
    if (this.#stroke !== null) {
      const { region, mask, value, last } = this.#stroke;
      const box = paintStroke(mask, last, at, (this.store.state.brush / 2) * pressure, value);
      this.#stroke.last = at;
      this.view.layers.touch(region, mask, box);
    } else if (this.#shape !== null) {
      this.#shape.to = even ? evenCorner(this.#shape.from, at) : at;
      this.view.marks.shape = this.#shape;
    } else return;
    this.view.draw();
  }

  /** Lift the tool: what was painted becomes part of the document. */
  finish() {
    const [stroke, shape] = [this.#stroke, this.#shape];
    this.#putDown();
    if (stroke !== null) {
      this.view.layers.settle(stroke.region.id, stroke.mask);
      this.#commit(stroke.region, stroke.mask);
    }
    if (shape === null) return;
    const region = this.#region();
    const mask = copied(region.mask);
    const { from, to } = shape;
    const box = {
      x0: Math.min(from.x, to.x),
      y0: Math.min(from.y, to.y),
      x1: Math.max(from.x, to.x),
      y1: Math.max(from.y, to.y),
    };
    if (shape.kind === "rectangle") paintRectangle(mask, box, shape.value);
    else paintEllipse(mask, box, shape.value);
    this.#commit(region, mask);
  }

  /** Leave everything as it was before. */
  giveUp() {
    if (this.#stroke !== null) this.view.layers.reset(this.#stroke.region);
    this.#putDown();
    this.view.draw();
  }

  #putDown() {
    this.#stroke = this.#shape = this.view.marks.shape = null;
    if (this.store.state.stroke) this.store.update({ stroke: false });
  }

  /** The region that is painted on: shown, and made where there is none. @returns {Region} */
  #region() {
    const { document, selected } = this.store.state;
    const chosen = document.regions.find((region) => region.id === selected);
    if (chosen !== undefined && !chosen.hidden) return chosen;
    this.store.edit((now) => (chosen ? changeRegion(now, chosen.id, { hidden: false }) : withRegion(now)));
    const { regions } = this.store.state.document;
    const region = regions.find((each) => each.id === chosen?.id) ?? regions[regions.length - 1];
    this.store.update({ selected: region.id });
    return region;
  }

  /** @param {Region} region @param {Point} at @param {0 | 1} value */
  #fill(region, at, value) {
    const { regions } = this.store.state.document;
    const others = regions.filter((each) => each.id !== region.id && !each.hidden);
    const mask = copied(region.mask);
    floodFill(
      mask,
      at,
      value,
      others.map((each) => each.mask),
    );
    this.#commit(region, mask);
  }

  /**
   * Given up where the region's mask was changed meanwhile, or is gone: what was painted began with another one.
   * @param {Region} region @param {Mask} mask
   */
  #commit(region, mask) {
    const now = this.store.state.document.regions.find((each) => each.id === region.id);
    if (now?.mask !== region.mask) this.view.layers.reset(region);
    else if (mask.data.some((value, at) => value !== region.mask.data[at])) {
      this.store.edit((document) => changeRegion(document, region.id, { mask }));
      mended(this.store, `region-${region.id}-mask`);
    }
    this.view.draw();
  }
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
