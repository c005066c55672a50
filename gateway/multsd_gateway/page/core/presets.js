// Documents to begin with.

import { changeSetting, emptyDocument, withRegion } from "./document.js";
import { emptyMask, paintEllipse, paintPolygon, paintRectangle } from "./masks.js";

/** @typedef {import("./document.js").Document} Document */
/** @typedef {import("./masks.js").Mask} Mask */
/** @typedef {import("../server/api.js").Limits} Limits */

/** @typedef {{ name: string, make: (limits: Limits) => Document }} Preset */

/**
 * The small checkpoint that comes with multsd knows some twenty words; prompts of those make no sense to others, and
 * theirs make none to it. A test holds this to the checkpoint's files.
 */
export const DEMO_CHECKPOINT = "sha256:308318f1f876c243b41c4c8982d1f9bda5ed760c979919e17686af555344ba61";

/** @typedef {(mask: Mask) => void} Shape paints itself; coordinates are shares of the sides */

/** @param {number} x0 @param {number} y0 @param {number} x1 @param {number} y1 @returns {Shape} */
const rectangle = (x0, y0, x1, y1) => (mask) => void paintRectangle(mask, scaled(mask, x0, y0, x1, y1), 1);

/** @param {number} x0 @param {number} y0 @param {number} x1 @param {number} y1 @returns {Shape} */
const ellipse = (x0, y0, x1, y1) => (mask) => void paintEllipse(mask, scaled(mask, x0, y0, x1, y1), 1);

/** @param {number} cx @param {number} cy @param {number} radius of the shorter side @returns {Shape} */
const star = (cx, cy, radius) => (mask) => {
  const size = radius * Math.min(mask.width, mask.height);
  /** @type {[number, number][]} */
  const points = Array.from({ length: 10 }, (_, i) => {
    const [angle, reach] = [(i * Math.PI) / 5 - Math.PI / 2, i % 2 === 0 ? size : size * 0.5];
    return [cx * mask.width + reach * Math.cos(angle), cy * mask.height + reach * Math.sin(angle)];
  });
  paintPolygon(mask, points);
};

/** @param {Mask} mask @param {number} x0 @param {number} y0 @param {number} x1 @param {number} y1 */
function scaled({ width, height }, x0, y0, x1, y1) {
  return { x0: x0 * width, y0: y0 * height, x1: x1 * width, y1: y1 * height };
}

/**
 * @param {string} name @param {Record<string, string>} settings @param {string} prompt
 * @param {[string, Shape][]} regions a prompt and its place each
 * @returns {Preset}
 */
function preset(name, settings, prompt, regions) {
  const make = (/** @type {Limits} */ { defaults }) => {
    let document = { ...emptyDocument(defaults.width, defaults.height), prompt };
    for (const [setting, value] of Object.entries(settings)) document = changeSetting(document, setting, value);
    for (const [text, shape] of regions) {
      const mask = emptyMask(document.width, document.height);
      shape(mask);
      document = withRegion(document, { prompt: text, mask });
    }
    return document;
  };
  return { name, make };
}

// A fifth of the steps: with more, what a mask has beside its object stays tinted.
const DEMO = { ddim_steps: "30", bootstrapping: "6", seed: "4" };
const OTHERS = { ddim_steps: "35", bootstrapping: "10" };

const DEMO_PRESETS = [
  preset("Blue and red", DEMO, "yellow background", [
    ["a blue square", rectangle(0.08, 0.28, 0.45, 0.72)],
    ["a red square", rectangle(0.56, 0.28, 0.94, 0.72)],
  ]),
  preset("Star and moon", DEMO, "blue background", [
    ["a yellow star", star(0.32, 0.42, 0.28)],
    ["a white circle", ellipse(0.62, 0.55, 0.92, 0.85)],
  ]),
  preset("Heart", DEMO, "white background", [["a red heart", ellipse(0.2, 0.15, 0.8, 0.85)]]),
];

const OTHER_PRESETS = [
  preset("Dog on a beach", OTHERS, "a beach at noon, photo", [["a Husky dog, photo", ellipse(0.25, 0.35, 0.75, 0.95)]]),
];

const BLANK = preset("Blank canvas", {}, "", []);

/**
 * Presets for the checkpoint that the server paints with, the best first.
 * @param {Limits} limits @returns {Preset[]}
 */
export function presetsFor({ checkpoint }) {
  return [...(checkpoint.digest === DEMO_CHECKPOINT ? DEMO_PRESETS : OTHER_PRESETS), BLANK];
}
