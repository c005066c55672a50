// Between a document and the body of POST /multsd, and between the names of both.

import { FORMATS, SETTINGS, emptyDocument, painted, withRegion } from "./document.js";
import { runLengths } from "./masks.js";
import { readMask } from "./shapes.js";

/** @typedef {import("./document.js").Document} Document */
/** @typedef {Record<string, any>} Body */

/**
 * A remark on one field. field: the request's name, or the page's own: `region-7-prompt` instead of `fg_prompt[0]`.
 * @typedef {{ field: string, message: string }} Note
 */

const EXACT = Number.MAX_SAFE_INTEGER;
const FIELDS = new Set(["bg_prompt", "bg_nprompt", "fg_prompt", "fg_nprompt", "masks", "width", "height", ...SETTINGS]);
const REGION_FIELDS = { fg_prompt: "prompt", fg_nprompt: "negative", masks: "mask" };

/** The body of POST /multsd. @param {Document} document @returns {Body} */
export function requestBody(document) {
  const regions = painted(document);
  /** @type {Body} */
  const body = { bg_prompt: document.prompt, bg_nprompt: document.negative };
  if (regions.length > 0) {
    body.fg_prompt = regions.map((region) => region.prompt);
    body.fg_nprompt = regions.map((region) => region.negative);
    body.masks = regions.map((region) => runLengths(region.mask));
  }
  body.width = document.width;
  body.height = document.height;
  for (const name of SETTINGS) {
    const text = document.settings[name].trim();
    if (text !== "") body[name] = jsonValue(text);
  }
  return body;
}

/** A number where JSON's numbers hold it exactly, else the text, which the API reads too. @param {string} text */
function jsonValue(text) {
  const number = Number(text);
  const exact = Number.isFinite(number) && Math.abs(number) <= EXACT && String(number) === text;
  return exact ? number : text;
}

/**
 * The document that a body describes. Throws an Error that says which field is at fault.
 * @param {Body} body
 * @param {{ width: number, height: number, maxPixels: number, maxRegions?: number, maxImagePixels?: number,
 *   maxPoints?: number }} canvas its size where the body has none, the most that it may hold, and the bounds of masks
 * @returns {Promise<Document>}
 */
export async function documentOf(body, { width, height, maxPixels, maxRegions = Infinity, ...bounds }) {
  const { maxImagePixels = Infinity, maxPoints = Infinity } = bounds;
  if (typeof body !== "object" || body === null || Array.isArray(body)) throw new Error("expected a JSON object");
  const size = { width: readSide(body, "width", width), height: readSide(body, "height", height) };
  if (size.width * size.height > maxPixels) {
    throw new Error(`expected width x height of at most ${maxPixels} pixels, found ${size.width} x ${size.height}`);
  }
  checkFormat(body.output_format ?? FORMATS[0]);
  const prompts = readTexts(body, "fg_prompt");
  if (prompts.length > maxRegions) {
    throw new Error(`fg_prompt: expected at most ${maxRegions} prompts, found ${prompts.length}`);
  }
  const negatives = readTexts(body, "fg_nprompt");
  const masks = Array.isArray(body.masks) ? body.masks : [];
  if (masks.length !== prompts.length) {
    throw new Error(`masks: expected ${prompts.length} (one per fg_prompt), found ${masks.length}`);
  }
  let document = {
    ...emptyDocument(size.width, size.height),
    prompt: readText(body, "bg_prompt"),
    negative: readText(body, "bg_nprompt"),
  };
  for (const name of SETTINGS) {
    if (body[name] !== undefined && body[name] !== null)
      document.settings = { ...document.settings, [name]: String(body[name]) };
  }
  for (const [i, prompt] of prompts.entries()) {
    const negative = negatives.length === 1 ? negatives[0] : (negatives[i] ?? document.negative);
    const mask = await readMask(masks[i], { ...size, maxImagePixels, maxPoints }).catch((error) => {
      throw new Error(`masks[${i}]: ${error.message}`);
    });
    document = withRegion(document, { prompt, negative, mask });
  }
  return document;
}

/** @param {Body} body @param {string} name @param {number} otherwise */
function readSide(body, name, otherwise) {
  const side = body[name] === undefined || body[name] === null ? otherwise : Number(body[name]);
  if (!Number.isInteger(side) || side < 1) throw new Error(`${name}: expected a number of pixels`);
  return side;
}

/** The page's command has it in a file's name: no other text passes for one. @param {unknown} format */
function checkFormat(format) {
  if (typeof format === "string" && FORMATS.includes(format)) return;
  throw new Error(`output_format: expected ${FORMATS.join(", ")}, found ${JSON.stringify(format)}`);
}

/** @param {Body} body @param {string} name @returns {string} */
function readText(body, name) {
  const value = body[name] ?? "";
  if (typeof value !== "string") throw new Error(`${name}: expected a string`);
  return value;
}

/** @param {Body} body @param {string} name @returns {string[]} */
function readTexts(body, name) {
  const value = body[name] ?? [];
  if (!Array.isArray(value) || value.some((text) => typeof text !== "string")) {
    throw new Error(`${name}: expected a list of strings`);
  }
  return value;
}

/** The names in a body that the page has no field for, and leaves out. @param {Body} body */
export function leftOut(body) {
  return Object.keys(body).filter((name) => !FIELDS.has(name) && body[name] !== null);
}

/**
 * Notes by the page's own names instead of the request's: regions by id, since they move.
 * @param {Note[]} notes @param {number[]} ids of the regions in the request's order @returns {Note[]}
 */
export function pageNotes(notes, ids) {
  return notes.map((note) => ({ ...note, field: pageField(note.field, ids) }));
}

/** @param {string} field @param {number[]} ids */
function pageField(field, ids) {
  const [, name, number] = /^(fg_prompt|fg_nprompt|masks)\[(\d+)\]/.exec(field) ?? [];
  const id = ids[Number(number)];
  const part = REGION_FIELDS[/** @type {keyof typeof REGION_FIELDS} */ (name)];
  return id === undefined || part === undefined ? field : `region-${id}-${part}`;
}
