// Errors and warnings beside the fields that they are about; what has no field is listed above the button.

import { element, make, setText } from "./dom.js";

/** @typedef {import("../core/request.js").Note} Note */
/** @typedef {import("../core/store.js").Store} Store */

/** @param {Store} store */
export function notes(store) {
  store.subscribe((state, before) => {
    const told = /** @type {const} */ (["errors", "warnings", "refused"]);
    const same = before !== null && told.every((name) => state[name] === before[name]);
    if (same && state.document.regions === before.document.regions) return;
    const left = show([...state.refused, ...state.errors], state.warnings);
    const list = element("notes", HTMLUListElement);
    list.replaceChildren(
      ...left.map(({ field, message, error }) => {
        return make("li", { className: error ? "note error" : "note", textContent: `${field}: ${message}` });
      }),
    );
    list.hidden = left.length === 0;
  });
}

/** Let go of the notes of a field that is being mended. @param {Store} store @param {string} field */
export function mended(store, field) {
  const { errors, warnings } = store.state;
  if (![...errors, ...warnings].some((note) => note.field === field)) return;
  const others = (/** @type {Note} */ note) => note.field !== field;
  store.update({ errors: errors.filter(others), warnings: warnings.filter(others) });
}

/** Bring the first field at fault that is shown into view and under the hands. */
export function focusFirstError() {
  const field = firstShown("[aria-invalid='true']") ?? firstShown(".note.error");
  if (!(field instanceof HTMLElement)) return;
  if (field.hasAttribute("aria-invalid")) field.focus();
  field.scrollIntoView({ block: "nearest" });
}

/** @param {string} selector */
function firstShown(selector) {
  return [...document.querySelectorAll(selector)].find((element) => element.getClientRects().length > 0);
}

/**
 * @param {readonly Note[]} errors @param {readonly Note[]} warnings
 * @returns {(Note & { error: boolean })[]} those without a field
 */
function show(errors, warnings) {
  const all = [
    ...errors.map((note) => ({ ...note, error: true })),
    ...warnings.map((note) => ({ ...note, error: false })),
  ];
  const placed = new Set();
  for (const field of document.querySelectorAll("[data-field]")) {
    const name = /** @type {HTMLElement} */ (field).dataset.field;
    const its = all.filter((note) => note.field === name);
    showAt(field, its);
    for (const note of its) placed.add(note);
  }
  return all.filter((note) => !placed.has(note));
}

/** @param {Element} field @param {(Note & { error: boolean })[]} its */
function showAt(field, its) {
  const text = field.querySelector(".note");
  if (!(text instanceof HTMLElement)) return;
  setText(text, its.map((note) => note.message).join("\n"));
  const error = its.some((note) => note.error);
  text.classList.toggle("error", error);
  const input = field.querySelector("input, textarea, select");
  if (input === null) return;
  text.id ||= `${input.id}-note`;
  if (error) input.setAttribute("aria-invalid", "true");
  else input.removeAttribute("aria-invalid");
  if (its.length > 0) input.setAttribute("aria-describedby", text.id);
  else input.removeAttribute("aria-describedby");
}
