// The choice of documents to begin with.

import { presetsFor } from "../core/presets.js";
import { element, make } from "./dom.js";

/** @typedef {import("../core/store.js").Store} Store */
/** @typedef {import("../core/document.js").Document} Document */

/** @param {Store} store @param {() => boolean} untouched whether nothing was painted or kept so far */
export function presets(store, untouched) {
  const choice = element("preset", HTMLSelectElement);
  choice.addEventListener("change", () => {
    const { limits } = store.state;
    const chosen = limits && presetsFor(limits).find((preset) => preset.name === choice.value);
    choice.value = "";
    if (limits && chosen) store.begin(chosen.make(limits), { show: "both", shown: null });
  });
  store.subscribe((state, before) => {
    const { limits } = state;
    if (limits === null || limits === before?.limits) return;
    const offered = presetsFor(limits);
    choice.replaceChildren(
      choice.options[0],
      ...offered.map(({ name }) => make("option", { value: name, textContent: name })),
    );
    if (untouched()) queueMicrotask(() => show(store, offered[0].make(limits)));
  });
}

/** Without a step to undo. @param {Store} store @param {Document} document */
function show(store, document) {
  store.update({ document, selected: document.regions[0]?.id ?? null });
}
