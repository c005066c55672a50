// Tools, brush size, undo and redo, what is shown, zoom; and the keys for all of them.

import { element, setValue } from "./dom.js";

/** @typedef {import("../core/store.js").Store} Store */
/** @typedef {import("../core/store.js").State} State */
/** @typedef {import("./canvas.js").CanvasView} CanvasView */
/** @typedef {import("./strokes.js").Strokes} Strokes */
/** @typedef {{ undo: () => void, redo: () => void }} Steps */

const ZOOM_STEP = 1.25;
const MAX_BRUSH = 256; // pixels, on canvases of up to twice that

/** @type {Record<string, State["tool"]>} */
const TOOL_KEYS = { b: "brush", e: "eraser", r: "rectangle", o: "ellipse", g: "fill", h: "pan" };
/** @type {State["show"][]} */
const SHOWN_IN_TURN = ["regions", "both", "picture"];

/** @param {Store} store @param {CanvasView} view @param {Strokes} strokes @param {() => void} generate */
export function toolbar(store, view, strokes, generate) {
  const steps = stepsOf(store, strokes);
  radios("tools", "tool", (value) => store.update({ tool: /** @type {State["tool"]} */ (value) }));
  radios("show", "show", (value) => store.update({ show: /** @type {State["show"]} */ (value) }));
  const brush = element("brush", HTMLInputElement);
  brush.addEventListener("input", () => store.update({ brush: Number(brush.value) }));
  const undo = press("undo", steps.undo);
  const redo = press("redo", steps.redo);
  press("zoom-in", () => view.zoom(ZOOM_STEP));
  press("zoom-out", () => view.zoom(1 / ZOOM_STEP));
  press("zoom-fit", () => view.showAll());
  const zoom = element("zoom", HTMLOutputElement);
  view.onCamera = () => (zoom.value = `${Math.round(view.camera.scale * 100)} %`);
  store.subscribe((state) => {
    check("tools", state.tool);
    check("show", state.show);
    brush.max = String(largestBrush(state));
    setValue(brush, String(state.brush));
    setValue(element("brush-value", HTMLOutputElement), String(state.brush));
    brush.disabled = state.tool !== "brush" && state.tool !== "eraser";
    undo.disabled = state.history.past.length === 0;
    redo.disabled = state.history.future.length === 0;
  });
  document.addEventListener("keydown", (event) => key(event, { store, view, steps, generate }));
}

/**
 * What is being painted is the last step, and undone by giving it up: the document that it is of stays as it is.
 * @param {Store} store @param {Strokes} strokes @returns {Steps}
 */
function stepsOf(store, strokes) {
  return {
    undo: () => (strokes.open ? strokes.giveUp() : store.undo()),
    redo: () => strokes.open || store.redo(),
  };
}

/** Diameter in pixels. @param {State} state */
function largestBrush({ document: { width, height } }) {
  return Math.max(MAX_BRUSH, Math.round(Math.max(width, height) / 2));
}

/** @param {State} state */
function largerBrush(state) {
  return Math.min(largestBrush(state), Math.ceil(state.brush * 1.2));
}

/** @param {string} id @param {() => void} action @returns {HTMLButtonElement} */
export function press(id, action) {
  const button = element(id, HTMLButtonElement);
  button.addEventListener("click", action);
  return button;
}

/** @param {string} id @param {string} name @param {(value: string) => void} action */
function radios(id, name, action) {
  element(id, HTMLFieldSetElement).addEventListener("change", (event) => {
    if (event.target instanceof HTMLInputElement && event.target.name === name) action(event.target.value);
  });
}

/** @param {string} id @param {string} value */
function check(id, value) {
  for (const input of element(id, HTMLFieldSetElement).querySelectorAll("input")) input.checked = input.value === value;
}

/**
 * @param {KeyboardEvent} event
 * @param {{ store: Store, view: CanvasView, steps: Steps, generate: () => void }} parts
 */
function key(event, { store, view, steps, generate }) {
  if (event.defaultPrevented || document.querySelector("dialog[open]") !== null) return;
  // Brackets need AltGr on many keyboards, which Windows tells as Ctrl and Alt together.
  const typed = event.getModifierState("AltGraph");
  const command = (event.ctrlKey && !typed) || event.metaKey;
  const letter = event.key.toLowerCase();
  if (command && letter === "enter") generate();
  else if (isText(event.target)) return;
  else if (command && letter === "z") event.shiftKey ? steps.redo() : steps.undo();
  else if (command && letter === "y") steps.redo();
  else if (command || (event.altKey && !typed)) return;
  else if (TOOL_KEYS[letter] !== undefined) store.update({ tool: TOOL_KEYS[letter] });
  else if (letter === "m") store.update({ show: SHOWN_IN_TURN[(SHOWN_IN_TURN.indexOf(store.state.show) + 1) % 3] });
  else if (letter === "[") store.update({ brush: Math.max(1, Math.floor(store.state.brush / 1.2)) });
  else if (letter === "]") store.update({ brush: largerBrush(store.state) });
  else if (letter === "+" || letter === "=") view.zoom(ZOOM_STEP);
  else if (letter === "-") view.zoom(1 / ZOOM_STEP);
  else if (letter === "0") view.showAll();
  else return;
  event.preventDefault();
}

/** Whether keys go into a text there, where they have their own meaning. @param {EventTarget | null} target */
function isText(target) {
  if (target instanceof HTMLInputElement) return target.type !== "radio" && target.type !== "range";
  return target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement;
}
