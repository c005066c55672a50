// The list of regions: a card each, with its prompts and what can be done with its mask.

import { changeRegion, moveRegion, withRegion, withoutRegion } from "../core/document.js";
import { emptyMask, inverted, stretched } from "../core/masks.js";
import { maskOfImage } from "../core/shapes.js";
import { announce, element, part, setValue } from "./dom.js";
import { mended } from "./notes.js";
import { press } from "./toolbar.js";

/** @typedef {import("../core/store.js").Store} Store */
/** @typedef {import("../core/document.js").Region} Region */
/** @typedef {import("../core/document.js").Document} Document */

/** @param {Store} store */
export function regionList(store) {
  /** @type {Map<number, HTMLElement>} */
  const cards = new Map();
  const list = element("regions", HTMLOListElement);
  const add = press("add-region", () => addRegion(store, cards));
  list.addEventListener("focusin", (event) => choose(store, event));
  list.addEventListener("click", (event) => choose(store, event));
  maskFile(store);
  store.subscribe((state, before) => {
    const { regions } = state.document;
    if (
      before !== null &&
      regions === before.document.regions &&
      state.selected === before.selected &&
      state.limits === before.limits
    )
      return;
    for (const [id, card] of cards) {
      if (regions.some((region) => region.id === id)) continue;
      card.remove();
      cards.delete(id);
    }
    regions.forEach((region, place) => {
      const card = cards.get(region.id) ?? newCard(store, region.id);
      cards.set(region.id, card);
      if (list.children[place] !== card) list.insertBefore(card, list.children[place] ?? null);
      fill(card, region, { place, count: regions.length, selected: region.id === state.selected });
    });
    element("no-regions", HTMLElement).hidden = regions.length > 0;
    add.disabled = regions.length >= (state.limits?.limits.max_regions ?? Infinity);
  });
}

/** @param {Store} store @param {Map<number, HTMLElement>} cards */
function addRegion(store, cards) {
  store.edit((document) => withRegion(document));
  const selected = store.state.document.regions.at(-1)?.id ?? null;
  store.update({ selected });
  if (selected !== null)
    part(/** @type {HTMLElement} */ (cards.get(selected)), "textarea", HTMLTextAreaElement).focus();
}

/** Whoever works on a card has its region selected. @param {Store} store @param {Event} event */
function choose(store, event) {
  const card = event.target instanceof Element ? event.target.closest("li") : null;
  const id = Number(card?.dataset.region);
  const there = store.state.document.regions.some((region) => region.id === id);
  if (there && store.state.selected !== id) store.update({ selected: id });
}

/** @param {Store} store @param {number} id @returns {HTMLElement} */
function newCard(store, id) {
  const template = element("region-template", HTMLTemplateElement);
  const card = part(/** @type {DocumentFragment} */ (template.content.cloneNode(true)), "li", HTMLElement);
  card.dataset.region = String(id);
  for (const name of /** @type {const} */ (["prompt", "negative", "mask"])) {
    const field = part(card, `[data-part="${name}"]`, HTMLElement);
    field.dataset.field = `region-${id}-${name}`;
    if (name === "mask") continue;
    const [label, text] = [part(field, "label", HTMLLabelElement), part(field, "textarea", HTMLTextAreaElement)];
    label.htmlFor = text.id = `region-${id}-${name}`;
    text.addEventListener("input", () => {
      store.edit((document) => changeRegion(document, id, { [name]: text.value }), text.id);
      mended(store, text.id);
    });
  }
  card.addEventListener("click", (event) => {
    const button = event.target instanceof Element ? event.target.closest("button") : null;
    if (button instanceof HTMLButtonElement && button.dataset.action) act(store, id, button);
  });
  return card;
}

/** @param {HTMLElement} card @param {Region} region @param {{ place: number, count: number, selected: boolean }} how */
function fill(card, region, { place, count, selected }) {
  const name = `Region ${place + 1}`;
  card.classList.toggle("selected", selected);
  card.classList.toggle("off", region.hidden);
  card.style.setProperty("--swatch", region.colour);
  part(card, ".name", HTMLElement).textContent = region.hidden ? `${name}, hidden` : name;
  const swatch = button(card, "select", `Paint on region ${place + 1}`);
  swatch.setAttribute("aria-pressed", String(selected));
  button(card, "up", `Move region ${place + 1} up`).disabled = place === 0;
  button(card, "down", `Move region ${place + 1} down`).disabled = place === count - 1;
  button(card, "delete", `Delete region ${place + 1}`);
  const hide = button(card, "hide", `Hide region ${place + 1}`);
  hide.setAttribute("aria-pressed", String(region.hidden));
  part(hide, "use", SVGUseElement).setAttribute("href", region.hidden ? "#icon-hidden" : "#icon-shown");
  part(card, ".mask-actions", HTMLElement).setAttribute("aria-label", `Mask of region ${place + 1}`);
  for (const [field, label, value] of [
    ["prompt", `Prompt of region ${place + 1}`, region.prompt],
    ["negative", "Negative prompt", region.negative],
  ]) {
    const container = part(card, `[data-part="${field}"]`, HTMLElement);
    part(container, "label", HTMLLabelElement).textContent = label;
    setValue(part(container, "textarea", HTMLTextAreaElement), value);
  }
}

/** @param {HTMLElement} card @param {string} action @param {string} label @returns {HTMLButtonElement} */
function button(card, action, label) {
  const found = part(card, `[data-action="${action}"]`, HTMLButtonElement);
  found.setAttribute("aria-label", label);
  return found;
}

/** @param {Store} store @param {number} id @param {HTMLButtonElement} pressed */
function act(store, id, pressed) {
  const action = pressed.dataset.action;
  /** @param {(region: Region) => Partial<Region>} change */
  const edit = (change) => {
    store.edit((document) => {
      const region = document.regions.find((each) => each.id === id);
      return region === undefined ? document : changeRegion(document, id, change(region));
    });
    if (action === "invert" || action === "clear") mended(store, `region-${id}-mask`);
  };
  if (action === "up" || action === "down") {
    store.edit((document) => moveRegion(document, id, action === "up" ? -1 : 1));
    announce(`Region is number ${1 + store.state.document.regions.findIndex((region) => region.id === id)} now`);
    const other = action === "up" ? "down" : "up"; // for a region that has arrived at an end of the list
    const card = /** @type {HTMLElement} */ (pressed.closest("li"));
    (pressed.disabled ? part(card, `[data-action="${other}"]`, HTMLButtonElement) : pressed).focus();
  } else if (action === "hide") edit((region) => ({ hidden: !region.hidden }));
  else if (action === "invert") edit((region) => ({ mask: inverted(region.mask) }));
  else if (action === "clear") edit((region) => ({ mask: emptyMask(region.mask.width, region.mask.height) }));
  else if (action === "image") element("mask-file", HTMLInputElement).click();
  else if (action === "delete") {
    store.edit((document) => withoutRegion(document, id));
    element("add-region", HTMLButtonElement).focus();
    announce("Region deleted");
  }
}

/** @param {Store} store */
function maskFile(store) {
  const input = element("mask-file", HTMLInputElement);
  input.addEventListener("change", async () => {
    const file = input.files?.[0];
    input.value = ""; // so that the same file may be chosen again
    if (file !== undefined) await useMaskImage(store, file);
  });
}

/** Put an image's bright pixels into the selected region. @param {Store} store @param {Blob} file */
export async function useMaskImage(store, file) {
  const { selected, document } = store.state;
  const field = `region-${selected}-mask`;
  try {
    const mask = stretched(await maskOfImage(file), document.width, document.height);
    if (selected !== null) store.edit((now) => changeRegion(now, selected, { mask }));
    mended(store, field);
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    store.update({ errors: [...store.state.errors.filter((note) => note.field !== field), { field, message }] });
  }
}
