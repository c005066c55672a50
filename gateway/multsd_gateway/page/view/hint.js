// What to do next, said on the canvas.

import { isEmpty } from "../core/masks.js";
import { element, setText } from "./dom.js";

/** @typedef {import("../core/store.js").Store} Store */
/** @typedef {import("../core/store.js").State} State */

/** @param {Store} store */
export function hint(store) {
  store.subscribe((state, before) => {
    const told = /** @type {const} */ (["document", "selected", "run", "show"]);
    if (before !== null && told.every((name) => state[name] === before[name])) return;
    setText(element("hint", HTMLElement), hintText(state));
  });
}

/** @param {State} state */
function hintText({ document, selected, run, show }) {
  const place = document.regions.findIndex((region) => region.id === selected);
  if (run !== null || show === "picture") return "";
  if (place < 0) return "Paint, and a region begins";
  return isEmpty(document.regions[place].mask) ? `Paint where region ${place + 1} is` : "";
}
