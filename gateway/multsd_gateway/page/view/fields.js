// Prompts of the background, and the settings; what they may be is the server's to say.

import { changeSetting, resized } from "../core/document.js";
import { element, make, setValue } from "./dom.js";
import { mended } from "./notes.js";
import { press } from "./toolbar.js";

/** @typedef {import("../core/store.js").Store} Store */
/** @typedef {import("../core/store.js").State} State */
/** @typedef {import("../core/request.js").Note} Note */
/** @typedef {import("../server/api.js").Limits} Limits */
/** @typedef {"width" | "height"} Side */

const TEXTS = /** @type {const} */ (["prompt", "negative"]);
const NUMBERS = ["ddim_steps", "bootstrapping", "guidance_scale", "seed", "view_stride", "quality"];
const CHOICES = /** @type {const} */ ({ scheduler: "schedulers", output_format: "output_formats" });
const SIDES = /** @type {const} */ (["width", "height"]);
const DICE = 2 ** 32;

/** @param {Store} store */
export function fields(store) {
  for (const name of TEXTS) {
    const field = element(name, HTMLTextAreaElement);
    field.addEventListener("input", () => {
      store.edit((document) => ({ ...document, [name]: field.value }), name);
      mended(store, name === "prompt" ? "bg_prompt" : "bg_nprompt");
    });
  }
  for (const name of NUMBERS) {
    const field = element(name, HTMLInputElement);
    field.addEventListener("input", () => set(store, name, field.value));
  }
  for (const name of Object.keys(CHOICES)) {
    const field = element(name, HTMLSelectElement);
    field.addEventListener("change", () => set(store, name, field.value));
  }
  for (const name of SIDES) {
    const field = element(name, HTMLInputElement);
    field.addEventListener("change", () => takeSize(store, name));
  }
  press("dice", () => set(store, "seed", String(crypto.getRandomValues(new Uint32Array(1))[0] % DICE)));
  store.subscribe((state, before) => {
    if (state.limits !== null && state.limits !== before?.limits) useLimits(state.limits);
    const { document } = state;
    showSize(state, before);
    if (document === before?.document && state.limits === before?.limits) return;
    for (const name of TEXTS) setValue(element(name, HTMLTextAreaElement), document[name]);
    for (const name of NUMBERS) setValue(element(name, HTMLInputElement), document.settings[name]);
    for (const name of Object.keys(CHOICES)) choose(element(name, HTMLSelectElement), document.settings[name]);
  });
}

/** @param {Store} store @param {string} name @param {string} value */
function set(store, name, value) {
  store.edit((document) => changeSetting(document, name, value), name);
  mended(store, name);
}

/**
 * Show a choice, one that the server does not offer too: it will say so.
 * @param {HTMLSelectElement} field @param {string} value
 */
function choose(field, value) {
  if (![...field.options].some((option) => option.value === value)) {
    field.append(make("option", { value, textContent: value }));
  }
  field.value = value;
}

/**
 * Take the size that the fields say. The canvas itself has it: one that could not be painted on is refused here, and
 * stays refused until its field says another.
 * @param {Store} store @param {Side} [changed] the field at fault where both sides together are too large
 */
export function takeSize(store, changed = sideAtFault(store)) {
  const { document, limits, errors, warnings } = store.state;
  const pixels = limits?.limits.max_pixels ?? 4 * 1024 * 1024;
  const size = { width: document.width, height: document.height };
  const refused = [];
  for (const name of SIDES) {
    const message = sideFault(element(name, HTMLInputElement).value, limits);
    if (message === null) size[name] = Number(element(name, HTMLInputElement).value);
    else refused.push({ field: name, message });
  }
  const tooLarge = size.width * size.height > pixels;
  if (tooLarge) {
    const message = `expected width x height of at most ${pixels} pixels, found ${size.width} x ${size.height}`;
    refused.push({ field: changed, message });
  }
  const taken = !tooLarge && (size.width !== document.width || size.height !== document.height);
  if (refused.length === 0 && store.state.refused.length === 0 && !taken) return;
  const others = (/** @type {Note} */ { field }) => field !== "width" && field !== "height";
  store.update({ refused, errors: errors.filter(others), warnings: warnings.filter(others) });
  if (taken) store.edit((now) => resized(now, size.width, size.height));
}

/** The side that is being typed, or that is refused by now. @param {Store} store @returns {Side} */
function sideAtFault({ state }) {
  const typed = document.activeElement?.id;
  return SIDES.find((name) => name === typed) ?? SIDES.find((name) => name === state.refused[0]?.field) ?? "width";
}

/** @param {string} text @param {Limits | null} told @returns {string | null} what is wrong with it */
function sideFault(text, told) {
  const [least, most] = [told?.limits.min_side ?? 64, told?.limits.max_side ?? 2048];
  const side = Number(text);
  if (Number.isInteger(side) && side >= least && side <= most) return null;
  return `expected ${least} to ${most}, found ${text.trim() || "nothing"}`;
}

/** The document's size in the fields, but for one that is refused. @param {State} state @param {State | null} before */
function showSize({ document, refused }, before) {
  const at = (/** @type {readonly Note[]} */ notes, /** @type {Side} */ name) =>
    notes.some(({ field }) => field === name);
  for (const name of SIDES) {
    const other = document[name] !== before?.document[name];
    const letGo = at(before?.refused ?? [], name) && !at(refused, name);
    if (other || letGo) setValue(element(name, HTMLInputElement), String(document[name]));
  }
}

/** @param {Limits} limits */
function useLimits({ limits, defaults, ...offered }) {
  for (const name of NUMBERS) {
    if (name !== "seed") element(name, HTMLInputElement).placeholder = String(defaults[name] ?? "");
  }
  title("width", `${limits.min_side} to ${limits.max_side} pixels, width x height at most ${limits.max_pixels}`);
  title("height", `${limits.min_side} to ${limits.max_side} pixels, width x height at most ${limits.max_pixels}`);
  title("ddim_steps", `1 to ${limits.max_steps}`);
  title(
    "bootstrapping",
    `In how many first steps each region is painted on plain grounds of its own; 0 to ${limits.max_bootstrapping}`,
  );
  title("guidance_scale", `How closely the prompts are followed; 0 to ${limits.max_guidance_scale}, 1 for none`);
  title("view_stride", "Latent cells from one view to the next of a picture larger than the model's window");
  title("seed", "The same seed gives the same picture; empty: another one each time");
  for (const [name, list] of Object.entries(CHOICES)) {
    const first =
      name === "scheduler" ? [make("option", { value: "", textContent: `default (${defaults[name]})` })] : [];
    const options = offered[list].map((value) => make("option", { value, textContent: value }));
    element(name, HTMLSelectElement).replaceChildren(...first, ...options);
  }
}

/** @param {string} id @param {string} text */
function title(id, text) {
  element(id, HTMLElement).title = text;
}
