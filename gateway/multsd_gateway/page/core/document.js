// The document: what a request is made from. A document is never changed; each function gives a new one.

import { emptyMask, stretched } from "./masks.js";

/** @typedef {import("./masks.js").Mask} Mask */

/**
 * hidden: not shown, and left out of the picture.
 * @typedef {{ readonly id: number, readonly colour: string, readonly prompt: string, readonly negative: string,
 *   readonly hidden: boolean, readonly mask: Mask }} Region
 */

/**
 * Settings are the texts of their fields, under the names of the request: the server says what is wrong with one. An
 * empty text leaves the choice to the server.
 * @typedef {{ readonly width: number, readonly height: number, readonly prompt: string, readonly negative: string,
 *   readonly regions: readonly Region[], readonly settings: Readonly<Record<string, string>> }} Document
 */

export const SETTINGS = [
  "ddim_steps",
  "bootstrapping",
  "guidance_scale",
  "scheduler",
  "seed",
  "view_stride",
  "output_format",
  "quality",
];

/** Of pictures. A test holds this to what the gateway writes. */
export const FORMATS = ["jpeg", "png", "webp"];

// Apart from each other in hue and lightness, and seen on light and dark pictures alike.
export const COLOURS = ["#e8590c", "#1c7ed6", "#2f9e44", "#ae3ec9", "#f2b705", "#0ca6a6", "#e03177", "#74503b"];

/** @param {number} width @param {number} height @returns {Document} */
export function emptyDocument(width, height) {
  const settings = Object.fromEntries(SETTINGS.map((name) => [name, ""]));
  return { width, height, prompt: "", negative: "", regions: [], settings: { ...settings, output_format: "png" } };
}

let lastId = 0;

/**
 * A number that no region has had since the page was loaded, in whatever document: what is said of a region that is
 * gone would be taken for another one's. @param {readonly Region[]} regions which may be of an earlier load
 */
function nextId(regions) {
  lastId = 1 + Math.max(lastId, ...regions.map((region) => region.id));
  return lastId;
}

/** The colour that the fewest regions have. @param {readonly Region[]} regions */
function nextColour(regions) {
  const uses = (/** @type {string} */ colour) => regions.filter((region) => region.colour === colour).length;
  return COLOURS.reduce((best, colour) => (uses(colour) < uses(best) ? colour : best));
}

/**
 * @param {Document} document @param {Partial<Region>} [known] @returns {Document} with a region at the end
 */
export function withRegion(document, known = {}) {
  const region = {
    id: nextId(document.regions),
    colour: nextColour(document.regions),
    prompt: "",
    negative: "",
    hidden: false,
    mask: emptyMask(document.width, document.height),
    ...known,
  };
  return { ...document, regions: [...document.regions, region] };
}

/** @param {Document} document @param {number} id @param {Partial<Region>} change @returns {Document} */
export function changeRegion(document, id, change) {
  const regions = document.regions.map((region) => (region.id === id ? { ...region, ...change } : region));
  return { ...document, regions };
}

/** @param {Document} document @param {number} id @returns {Document} */
export function withoutRegion(document, id) {
  return { ...document, regions: document.regions.filter((region) => region.id !== id) };
}

/** @param {Document} document @param {number} id @param {-1 | 1} by places @returns {Document} */
export function moveRegion(document, id, by) {
  const from = document.regions.findIndex((region) => region.id === id);
  const to = from + by;
  if (from < 0 || to < 0 || to >= document.regions.length) return document;
  const regions = [...document.regions];
  [regions[from], regions[to]] = [regions[to], regions[from]];
  return { ...document, regions };
}

/** @param {Document} document @param {string} name @param {string} value @returns {Document} */
export function changeSetting(document, name, value) {
  return { ...document, settings: { ...document.settings, [name]: value } };
}

/**
 * Another size; the masks are stretched, as the server would.
 * @param {Document} document @param {number} width @param {number} height @returns {Document}
 */
export function resized(document, width, height) {
  if (document.width === width && document.height === height) return document;
  const regions = document.regions.map((region) => ({ ...region, mask: stretched(region.mask, width, height) }));
  return { ...document, width, height, regions };
}

/** @param {Document} document the regions that are part of the picture */
export function painted(document) {
  return document.regions.filter((region) => !region.hidden);
}
