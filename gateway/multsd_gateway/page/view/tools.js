// Pen, finger, mouse and keyboard on the canvas: they paint, zoom and move the view.

import { toPicture } from "./camera.js";
import { announce } from "./dom.js";
import { Strokes } from "./strokes.js";

/** @typedef {import("../core/masks.js").Point} Point */
/** @typedef {import("../core/store.js").Store} Store */
/** @typedef {import("./canvas.js").CanvasView} CanvasView */

const STEP = 8; // picture pixels that an arrow key moves by
const PAN_STEP = 32; // CSS pixels
const LEAST_PRESSURE = 0.3;
const LINE = 24; // CSS pixels that a wheel's line stands for
const WHEEL = 600; // CSS pixels of a wheel that zoom by e
const PINCH = 4; // times: what a touchpad tells of a pinch, as a wheel with Ctrl, is small

/** @type {Record<string, [number, number]>} */
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** The hands on the canvas. */
export class Tools {
  /** @param {HTMLCanvasElement} canvas @param {CanvasView} view @param {Store} store */
  constructor(canvas, view, store) {
    this.canvas = canvas;
    this.view = view;
    this.store = store;
    this.strokes = new Strokes(view, store);
    /** @type {Map<number, Point>} */
    this.pointers = new Map(); // where each that is down lies, in CSS pixels of the canvas
    /** @type {number | null} */
    this.painting = null; // the pointer that paints
    /** @type {Point} */
    this.cursor = { x: 0, y: 0 }; // of the keyboard; in the middle at first
    this.pen = false; // whether a pen is down: a hand that rests beside it is no finger
    this.pinching = false;
    this.panning = false;
    this.spaceDown = false;
    this.#listen();
  }

  #listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", (event) => this.#up(event));
    canvas.addEventListener("pointercancel", (event) => this.#cancelled(event));
    canvas.addEventListener("pointerleave", () => this.#mark(null, false));
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("keyup", (event) => this.#keyUp(event));
    canvas.addEventListener("focus", () => {
      if (canvas.matches(":focus-visible")) this.#mark(this.cursor, true);
    });
    canvas.addEventListener("blur", () => {
      this.spaceDown = false;
      if (this.painting === null) this.strokes.giveUp(); // a shape that the keyboard began
      this.#mark(null, false);
    });
    this.store.subscribe((state, before) => {
      const { width, height } = state.document;
      const resized = width !== before?.document.width || height !== before.document.height;
      if (resized) this.cursor = { x: width / 2, y: height / 2 };
      canvas.dataset.tool = state.tool;
      const other = before !== null && (state.tool !== before.tool || state.brush !== before.brush);
      if (other) this.#mark(this.view.marks.at, this.view.marks.cross);
    });
  }

  /** @param {PointerEvent | WheelEvent} event @returns {Point} of the window */
  #inWindow(event) {
    const place = this.canvas.getBoundingClientRect();
    return { x: event.clientX - place.left, y: event.clientY - place.top };
  }

  /** @param {PointerEvent} event @returns {Point} of the picture */
  #inPicture(event) {
    return toPicture(this.view.camera, this.#inWindow(event));
  }

  /** @param {PointerEvent} event */
  #down(event) {
    if (this.pen && event.pointerType === "touch") return;
    this.pen = event.pointerType === "pen";
    this.pointers.set(event.pointerId, this.#inWindow(event));
    this.canvas.setPointerCapture(event.pointerId);
    if (this.pointers.size > 1) {
      this.strokes.giveUp(); // two fingers move the view, whatever the first one began
      this.painting = null;
      this.pinching = true;
      return;
    }
    this.panning = event.button === 1 || this.spaceDown || this.store.state.tool === "pan";
    if (this.panning || event.button !== 0) return;
    this.strokes.giveUp(); // a shape that the keyboard began
    this.strokes.begin(this.#inPicture(event), { erase: event.altKey, pressure: pressure(event) });
    this.painting = event.pointerId;
  }

  /** @param {PointerEvent} event */
  #move(event) {
    const at = this.#inWindow(event);
    const before = this.pointers.get(event.pointerId);
    if (before !== undefined) {
      if (this.pinching) this.#pinch(event.pointerId, before, at);
      else if (this.panning) this.view.move(at.x - before.x, at.y - before.y);
      this.pointers.set(event.pointerId, at);
    }
    if (this.painting === event.pointerId) {
      for (const each of coalesced(event)) {
        this.strokes.go(this.#inPicture(each), { pressure: pressure(each), even: event.shiftKey });
      }
    }
    this.#mark(event.pointerType === "touch" ? null : this.#inPicture(event), false);
  }

  /** @param {number} pointer @param {Point} before @param {Point} at */
  #pinch(pointer, before, at) {
    const other = [...this.pointers].find(([id]) => id !== pointer)?.[1];
    if (other === undefined) return;
    const distance = (/** @type {Point} */ a) => Math.max(1, Math.hypot(a.x - other.x, a.y - other.y));
    this.view.move((at.x - before.x) / 2, (at.y - before.y) / 2);
    this.view.zoom(distance(at) / distance(before), { x: (at.x + other.x) / 2, y: (at.y + other.y) / 2 });
  }

  /** @param {PointerEvent} event */
  #up(event) {
    if (this.painting === event.pointerId) this.strokes.finish();
    this.#released(event.pointerId);
  }

  /** @param {PointerEvent} event */
  #cancelled(event) {
    if (this.painting === event.pointerId) this.strokes.giveUp();
    this.#released(event.pointerId);
  }

  /** @param {number} pointer */
  #released(pointer) {
    this.pointers.delete(pointer);
    if (this.painting === pointer) this.painting = null;
    if (this.pointers.size === 0) this.pen = this.pinching = this.panning = false;
  }

  /** @param {WheelEvent} event */
  #wheel(event) {
    event.preventDefault();
    const unit = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? LINE : 1;
    if (event.shiftKey) this.view.move(-(event.deltaX || event.deltaY) * unit, 0);
    else this.view.zoom(Math.exp((-event.deltaY * unit * (event.ctrlKey ? PINCH : 1)) / WHEEL), this.#inWindow(event));
  }

  /** Show where the tool is. @param {Point | null} at @param {boolean} cross whether the keyboard moves it */
  #mark(at, cross) {
    const { tool, brush } = this.store.state;
    const round = (tool === "brush" || tool === "eraser") && !this.spaceDown;
    Object.assign(this.view.marks, { at, cross: cross && tool !== "pan", brush: round ? brush : null });
    this.view.draw();
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.ctrlKey || event.metaKey) return;
    const direction = ARROWS[event.key];
    if (direction !== undefined) this.#arrow(direction[0], direction[1], event.shiftKey ? 1 : STEP);
    else if (event.key === "Enter") this.#enter(event.altKey);
    else if (event.key === "Escape") this.strokes.giveUp();
    else if (event.key === " ") this.spaceDown = true;
    else return;
    event.preventDefault();
  }

  /** @param {KeyboardEvent} event */
  #keyUp(event) {
    if (event.key === " ") this.spaceDown = false;
  }

  /** @param {number} dx @param {number} dy @param {number} step */
  #arrow(dx, dy, step) {
    if (this.store.state.tool === "pan") {
      this.view.move(-dx * PAN_STEP, -dy * PAN_STEP);
      return;
    }
    const { width, height } = this.store.state.document;
    const within = (/** @type {number} */ value, /** @type {number} */ most) => Math.max(0, Math.min(most, value));
    this.cursor = { x: within(this.cursor.x + dx * step, width), y: within(this.cursor.y + dy * step, height) };
    this.strokes.go(this.cursor);
    this.#mark(this.cursor, true);
    announce(`${Math.round(this.cursor.x)}, ${Math.round(this.cursor.y)}`);
  }

  /** @param {boolean} erase */
  #enter(erase) {
    if (this.store.state.tool === "pan") return;
    if (this.strokes.open) {
      this.strokes.finish();
      announce("Painted");
      return;
    }
    this.strokes.begin(this.cursor, { erase });
    if (this.strokes.shaping) announce("First corner set");
    else {
      this.strokes.finish();
      announce("Painted");
    }
  }
}

/** The share of the brush's size that a pen's pressure asks for. @param {PointerEvent} event */
function pressure(event) {
  return event.pointerType === "pen" ? LEAST_PRESSURE + (1 - LEAST_PRESSURE) * event.pressure : 1;
}

/** All places that a pointer passed since the last event. @param {PointerEvent} event @returns {PointerEvent[]} */
function coalesced(event) {
  const events = event.getCoalescedEvents?.() ?? [];
  return events.length > 0 ? events : [event];
}
