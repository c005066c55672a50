// What the canvas shows: checkerboard, picture or preview, regions, and the tool's own marks.

import { fitted, moved, zoomed } from "./camera.js";
import { Layers } from "./layers.js";

/** @typedef {import("../core/store.js").Store} Store */
/** @typedef {import("../core/store.js").State} State */
/** @typedef {import("../core/masks.js").Point} Point */
/** @typedef {import("../core/document.js").Region} Region */

/**
 * What the tool in hand shows over the picture. brush: diameter in picture pixels; cross: where the keyboard is;
 * region: what is being painted on, even if it is hidden or not part of the document yet; shape: of the rectangle or
 * ellipse that is being drawn.
 * @typedef {{ at: Point | null, brush: number | null, cross: boolean, region: Region | null,
 *   shape: { kind: "rectangle" | "ellipse", from: Point, to: Point } | null }} Marks
 */

const CHECK = 12; // CSS pixels
const OVER_PICTURE = 0.6;
const PIXELS_SHOW = 3; // scale from which pixels are drawn as squares

/**
 * Where a picture lies on a canvas, as large as it can and in its own proportions.
 * @param {import("./camera.js").Size} canvas @param {import("./camera.js").Size} picture
 */
function within(canvas, picture) {
  const scale = Math.min(canvas.width / picture.width, canvas.height / picture.height);
  const [width, height] = [picture.width * scale, picture.height * scale];
  return { x: (canvas.width - width) / 2, y: (canvas.height - height) / 2, width, height };
}

/** Draws the canvas whenever something that it shows has changed. */
export class CanvasView {
  /** @param {HTMLCanvasElement} canvas @param {Store} store */
  constructor(canvas, store) {
    this.canvas = canvas;
    this.store = store;
    this.layers = new Layers();
    this.camera = fitted(store.state.document, { width: 1, height: 1 });
    this.fit = true; // until somebody zooms or moves
    /** @type {Marks} */
    this.marks = { at: null, brush: null, cross: false, region: null, shape: null };
    /** @type {{ id: number, image: ImageBitmap } | null} */
    this.picture = null;
    this.onCamera = () => {};
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    this.waiting = false;
    this.ratio = 1; // pixels of the bitmap to a CSS pixel
    new ResizeObserver(() => this.#resize()).observe(canvas);
    this.#watchRatio();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    store.subscribe((state, before) => this.#changed(state, before));
  }

  get size() {
    return { width: this.canvas.clientWidth, height: this.canvas.clientHeight };
  }

  /** @param {number} factor @param {Point} [about] of the window, else its middle */
  zoom(factor, about = { x: this.size.width / 2, y: this.size.height / 2 }) {
    this.#look(zoomed(this.camera, factor, about), false);
  }

  /** @param {number} dx @param {number} dy CSS pixels */
  move(dx, dy) {
    this.#look(moved(this.camera, dx, dy), false);
  }

  /** The whole picture, from now on whatever the window's size. */
  showAll() {
    this.#look(fitted(this.store.state.document, this.size), true);
  }

  /** @param {import("./camera.js").Camera} camera @param {boolean} fit */
  #look(camera, fit) {
    this.camera = camera;
    this.fit = fit;
    this.draw();
    this.onCamera();
  }

  /** A window on another screen has other pixels, though its size in CSS pixels is the same. */
  #watchRatio() {
    const same = matchMedia(`(resolution: ${devicePixelRatio}dppx)`);
    const changed = () => {
      this.#resize();
      this.#watchRatio();
    };
    same.addEventListener("change", changed, { once: true });
  }

  #resize() {
    const { width, height } = this.size;
    this.ratio = devicePixelRatio;
    this.canvas.width = Math.round(width * this.ratio);
    this.canvas.height = Math.round(height * this.ratio);
    if (this.fit) this.showAll();
    this.#paint(); // at once: a canvas that changes its size is empty
  }

  /** @param {State} state @param {State | null} before */
  #changed(state, before) {
    const { document, shown, results } = state;
    if (before === null || document.regions !== before.document.regions) this.layers.keepOnly(document.regions);
    const resized = document.width !== before?.document.width || document.height !== before?.document.height;
    if (resized && before !== null) this.showAll();
    if (before === null || shown !== before.shown) void this.#decode(results.find((result) => result.id === shown));
    const drawn = /** @type {const} */ (["document", "selected", "tool", "brush", "show", "preview", "shown"]);
    if (before === null || drawn.some((name) => state[name] !== before[name])) this.draw();
  }

  /** @param {import("../core/store.js").Result | undefined} result */
  async #decode(result) {
    const image = result === undefined ? null : await createImageBitmap(result.blob);
    if (this.store.state.shown !== (result?.id ?? null)) return image?.close();
    this.picture?.image.close();
    this.picture = image && result ? { id: result.id, image } : null;
    this.canvas.dataset.shown = String(this.picture?.id ?? "");
    return this.draw();
  }

  /** Draw soon, once for however many changes. */
  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.#paint();
    });
  }

  #paint() {
    const { context, camera, canvas, ratio } = this;
    const { document: shown, show, preview, run } = this.store.state;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.#checkerboard(shown);
    const picture = preview ?? this.picture?.image ?? null;
    const visible = show !== "regions" && picture !== null;
    context.setTransform(ratio * camera.scale, 0, 0, ratio * camera.scale, ratio * camera.x, ratio * camera.y);
    if (visible) {
      // A preview is small and blurred on purpose; a picture's pixels are shown as they are.
      context.imageSmoothingEnabled = picture === preview || camera.scale < PIXELS_SHOW;
      context.imageSmoothingQuality = "high";
      // A preview has a pixel for each cell: its proportions are those of the picture that it is of.
      const place = within(shown, (picture === preview ? run : null) ?? picture);
      context.drawImage(picture, place.x, place.y, place.width, place.height);
    }
    if (show !== "picture" || !visible) this.#regions(visible);
    this.#drawMarks();
  }

  /** @param {{ width: number, height: number }} picture */
  #checkerboard({ width, height }) {
    const { context, camera } = this;
    const style = getComputedStyle(document.documentElement);
    const [left, top] = [Math.max(0, camera.x), Math.max(0, camera.y)];
    const right = Math.min(this.size.width, camera.x + width * camera.scale);
    const bottom = Math.min(this.size.height, camera.y + height * camera.scale);
    if (right <= left || bottom <= top) return;
    context.fillStyle = style.getPropertyValue("--check-a");
    context.fillRect(left, top, right - left, bottom - top);
    context.save();
    context.beginPath();
    context.rect(left, top, right - left, bottom - top);
    context.clip();
    context.beginPath();
    const [firstColumn, firstRow] = [Math.floor((left - camera.x) / CHECK), Math.floor((top - camera.y) / CHECK)];
    for (let row = firstRow; camera.y + row * CHECK < bottom; row++) {
      for (
        let column = firstColumn + ((firstColumn + row) % 2 ? 1 : 0);
        camera.x + column * CHECK < right;
        column += 2
      ) {
        context.rect(camera.x + column * CHECK, camera.y + row * CHECK, CHECK, CHECK);
      }
    }
    context.fillStyle = style.getPropertyValue("--check-b");
    context.fill();
    context.restore();
  }

  /** @param {boolean} overPicture */
  #regions(overPicture) {
    const { context } = this;
    const { document: shown, selected } = this.store.state;
    const { region: painted } = this.marks;
    const made = painted !== null && !shown.regions.some((region) => region.id === painted.id);
    context.imageSmoothingEnabled = this.camera.scale < PIXELS_SHOW;
    for (const region of made ? [...shown.regions, painted] : shown.regions) {
      if (region.hidden && region.id !== painted?.id) continue;
      context.globalAlpha = (overPicture ? OVER_PICTURE : 1) * (region.id === (painted?.id ?? selected) ? 1 : 0.75);
      context.drawImage(this.layers.of(region), 0, 0);
    }
    context.globalAlpha = 1;
  }

  #drawMarks() {
    const { context, marks, camera } = this;
    if (marks.shape !== null) {
      const { kind, from, to } = marks.shape;
      this.#twice(1, () => {
        if (kind === "rectangle")
          context.rect(
            Math.min(from.x, to.x),
            Math.min(from.y, to.y),
            Math.abs(to.x - from.x),
            Math.abs(to.y - from.y),
          );
        else
          context.ellipse(
            (from.x + to.x) / 2,
            (from.y + to.y) / 2,
            Math.abs(to.x - from.x) / 2,
            Math.abs(to.y - from.y) / 2,
            0,
            0,
            2 * Math.PI,
          );
      });
    }
    const { at, brush, cross } = marks;
    if (at === null) return;
    if (brush !== null) this.#twice(1, () => context.arc(at.x, at.y, Math.max(brush / 2, 0.75), 0, 2 * Math.PI));
    if (!cross) return;
    const reach = 10 / camera.scale;
    this.#twice(1.5, () => {
      context.moveTo(at.x - reach, at.y);
      context.lineTo(at.x + reach, at.y);
      context.moveTo(at.x, at.y - reach);
      context.lineTo(at.x, at.y + reach);
    });
  }

  /** A light line in a dark one, seen on every ground. @param {number} width CSS pixels @param {() => void} path */
  #twice(width, path) {
    const { context, camera } = this;
    context.beginPath();
    path();
    context.lineWidth = (width + 2) / camera.scale;
    context.strokeStyle = "rgb(0 0 0 / 65%)";
    context.stroke();
    context.lineWidth = width / camera.scale;
    context.strokeStyle = "#fff";
    context.stroke();
  }
}
