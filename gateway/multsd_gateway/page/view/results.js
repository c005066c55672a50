// Finished pictures: a strip to choose from, download, and the way back to their settings.

import { documentOf, pageNotes } from "../core/request.js";
import { element, make, setShown } from "./dom.js";
import { press } from "./toolbar.js";

/** @typedef {import("../core/store.js").Store} Store */
/** @typedef {import("../core/store.js").Result} Result */

/** @param {Store} store @param {(id: number) => Promise<void>} forget */
export function results(store, forget) {
  const strip = element("strip", HTMLUListElement);
  press("use-again", async () => {
    const result = shown(store);
    if (result === undefined) return;
    const { width, height } = store.state.document;
    const document = await documentOf(result.body, { width, height, maxPixels: Infinity });
    const ids = document.regions.map((region) => region.id);
    store.begin(document, { warnings: pageNotes(result.warnings, ids) });
  });
  press("forget", async () => {
    const result = shown(store);
    if (result === undefined) return;
    const left = store.state.results.filter((each) => each !== result);
    store.update({ results: left, shown: left.at(-1)?.id ?? null });
    URL.revokeObjectURL(result.url);
    await forget(result.id);
  });
  store.subscribe((state, before) => {
    if (state.results === before?.results && state.shown === before?.shown) return;
    setShown("results", state.results.length > 0, "generate");
    strip.replaceChildren(...state.results.map((result, place) => item(store, result, place + 1)).reverse());
    const result = shown(store);
    element("result-actions", HTMLElement).hidden = result === undefined;
    if (result !== undefined) offer(result);
  });
}

/** @param {Store} store */
function shown({ state }) {
  return state.results.find((result) => result.id === state.shown);
}

/** @param {Result} result */
function offer({ url, body, blob }) {
  const link = element("download", HTMLAnchorElement);
  link.href = url;
  element("shown-seed", HTMLElement).textContent = `Seed ${body.seed}`;
  link.download = `multsd-${body.seed}.${blob.type.replace("image/", "").replace("jpeg", "jpg")}`;
}

/** @param {Store} store @param {Result} result @param {number} number @returns {HTMLElement} */
function item(store, result, number) {
  const picture = make("img", { src: result.url, alt: "" });
  const button = make(
    "button",
    { type: "button", title: `${result.body.bg_prompt}, seed ${result.body.seed}` },
    picture,
  );
  button.setAttribute("aria-label", `Picture ${number}: ${result.body.bg_prompt}, seed ${result.body.seed}`);
  button.setAttribute("aria-pressed", String(result.id === store.state.shown));
  button.addEventListener("click", () => {
    const { show } = store.state;
    store.update({ shown: result.id, show: show === "regions" ? "picture" : show });
    const again = element("strip", HTMLElement).querySelector("[aria-pressed='true']");
    if (again instanceof HTMLElement) again.focus(); // the strip was made anew
  });
  return make("li", {}, button);
}
