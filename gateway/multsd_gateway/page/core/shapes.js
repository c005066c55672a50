// One mask of a request's JSON: an image, a box, a polygon or run lengths, refused where the server would refuse it.

import { emptyMask, maskOfPixels, maskOfRuns, paintPolygon, paintRectangle, stretched } from "./masks.js";

/** @typedef {import("./masks.js").Mask} Mask */
/**
 * width, height: of the canvas; the others: the most pixels that a mask of another size, and the most points that a
 * polygon may have.
 * @typedef {{ width: number, height: number, maxImagePixels: number, maxPoints: number }} Bounds
 */

const FARTHEST = 100_000; // pixels, of any coordinate or side
const MIN_POINTS = 3;
/** @type {Record<string, (value: any, bounds: Bounds) => Mask>} */
const SHAPES = { box: maskOfBox, polygon: maskOfPolygon, counts: maskOfCounts };

/**
 * A mask of the canvas's size. Throws an Error that says what was expected.
 * @param {any} value @param {Bounds} bounds @returns {Promise<Mask>}
 */
export async function readMask(value, bounds) {
  if (typeof value === "string") {
    const mask = await maskOfImage(maskImage(value), bounds.maxImagePixels);
    return stretched(mask, bounds.width, bounds.height);
  }
  const kinds = Object.keys(SHAPES).filter((kind) => Object.hasOwn(Object(value), kind));
  if (kinds.length !== 1) throw new Error("expected an image, a box, a polygon or run lengths");
  const [kind] = kinds;
  const known = kind === "counts" ? ["size", "counts"] : [kind];
  const unknown = Object.keys(value).find((name) => !known.includes(name));
  if (unknown !== undefined) throw new Error(`${kind}: expected no other names, found "${unknown}"`);
  return SHAPES[kind](value, bounds);
}

/**
 * Inside is where the image is bright. Throws an Error where the file is no image.
 * @param {Blob} blob @param {number} [maxPixels] @returns {Promise<Mask>} of the image's size
 */
export async function maskOfImage(blob, maxPixels = Infinity) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Error("expected an image that the browser can read");
  }
  const { width, height } = bitmap;
  if (width * height > maxPixels) {
    bitmap.close();
    throw new Error(`expected an image of at most ${maxPixels} pixels, found ${width}x${height}`);
  }
  const canvas = new OffscreenCanvas(width, height);
  const context = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return maskOfPixels(context.getImageData(0, 0, width, height));
}

/** @param {string} text @returns {Blob} */
function maskImage(text) {
  const [, head, data] = /^(data:[^,]*,)?([^]*)$/i.exec(text) ?? [];
  if (head !== undefined && !/;base64\s*,$/i.test(head)) {
    throw new Error("expected a data: URL with base64, found another encoding");
  }
  try {
    if (data.replace(/\s+/g, "").length % 4 !== 0) throw new Error("the padding is missing");
    return base64Blob(text);
  } catch {
    throw new Error("expected an image in base64, found invalid base64");
  }
}

/** @param {string} text base64, or a data: URL @param {string} [type] @returns {Blob} */
export function base64Blob(text, type = "") {
  const [, data] = /^(?:data:[^,]*,)?([^]*)$/i.exec(text) ?? [];
  const bytes = Uint8Array.from(atob(data.replace(/\s+/g, "")), (character) => character.charCodeAt(0));
  return new Blob([bytes], { type });
}

/** @param {any} value @param {Bounds} bounds */
function maskOfBox({ box }, { width, height }) {
  const [x0, y0, x1, y1] = readPixels("box", box, 4);
  if (x1 <= x0 || y1 <= y0) {
    throw new Error(`box: expected 0 <= x0 < x1 and 0 <= y0 < y1, found ${[x0, y0, x1, y1]}`);
  }
  if (x0 >= width || y0 >= height) {
    throw new Error(`box: expected it on the ${width}x${height} canvas, found ${[x0, y0, x1, y1]}`);
  }
  const mask = emptyMask(width, height);
  paintRectangle(mask, { x0, y0, x1, y1 }, 1);
  return mask;
}

/** @param {any} value @param {Bounds} bounds */
function maskOfPolygon({ polygon }, { width, height, maxPoints }) {
  if (!Array.isArray(polygon)) throw new Error("polygon: expected a list of points");
  if (polygon.length < MIN_POINTS) {
    throw new Error(`polygon: expected at least ${MIN_POINTS} points, found ${polygon.length}`);
  }
  if (polygon.length > maxPoints) {
    throw new Error(`polygon: expected at most ${maxPoints} points, found ${polygon.length}`);
  }
  const points = polygon.map((point, number) => {
    const [x, y] = Array.isArray(point) && point.length === 2 ? point.map(readNumber) : [NaN, NaN];
    if (!(Math.abs(x) <= FARTHEST && Math.abs(y) <= FARTHEST)) {
      throw new Error(`polygon[${number}]: expected two numbers of -${FARTHEST} to ${FARTHEST}`);
    }
    return /** @type {[number, number]} */ ([x, y]);
  });
  const mask = emptyMask(width, height);
  paintPolygon(mask, points);
  return mask;
}

/** @param {any} value @param {Bounds} bounds */
function maskOfCounts({ size, counts }, { width, height, maxImagePixels }) {
  const [rows, columns] = readPixels("size", size, 2);
  if (rows < 1 || columns < 1) throw new Error(`size: expected [height, width] of at least 1, found ${size}`);
  if (rows * columns > maxImagePixels) {
    throw new Error(`expected a mask of at most ${maxImagePixels} pixels, found ${columns}x${rows}`);
  }
  const runs = readPixels("counts", counts, null, FARTHEST ** 2);
  return stretched(maskOfRuns({ size: [rows, columns], counts: runs }), width, height);
}

/**
 * @param {string} name @param {any} value @param {number | null} length @param {number} [most] @returns {number[]}
 */
function readPixels(name, value, length, most = FARTHEST) {
  if (!Array.isArray(value)) throw new Error(`${name}: expected a list of numbers`);
  if (length !== null && value.length !== length) {
    throw new Error(`${name}: expected ${length} numbers, found ${value.length}`);
  }
  const numbers = value.map(readNumber);
  const wrong = numbers.findIndex((number) => !Number.isInteger(number) || number < 0 || number > most);
  if (wrong >= 0) {
    throw new Error(`${name}: expected whole numbers of 0 to ${most}, found ${JSON.stringify(value[wrong])}`);
  }
  return numbers;
}

/** A number, or one in digits, which the API reads too; NaN for anything else. @param {any} value */
function readNumber(value) {
  if (typeof value === "string" && value.trim() !== "") return Number(value);
  return typeof value === "number" ? value : NaN;
}
