// Masks as coloured layers: a canvas for each region's mask, made when it is first drawn.

/** @typedef {import("../core/masks.js").Mask} Mask */
/** @typedef {import("../core/masks.js").Box} Box */
/** @typedef {import("../core/document.js").Region} Region */

const INSIDE = 90; // opacity of 255
const EDGE = 255;
const EDGE_WIDTH = 2; // pixels

/** The layers of the regions that are there. */
export class Layers {
  /** @type {Map<number, { mask: Mask, colour: string, canvas: OffscreenCanvas }>} */
  #layers = new Map();

  /** The layer of a region, up to date. @param {Region} region @returns {OffscreenCanvas} */
  of({ id, mask, colour }) {
    let layer = this.#layers.get(id);
    if (layer === undefined || layer.mask.width !== mask.width || layer.mask.height !== mask.height) {
      layer = { mask, colour, canvas: new OffscreenCanvas(mask.width, mask.height) };
      this.#layers.set(id, layer);
      tint(layer.canvas, mask, colour, whole(mask));
    } else if (layer.mask !== mask || layer.colour !== colour) {
      Object.assign(layer, { mask, colour });
      tint(layer.canvas, mask, colour, whole(mask));
    }
    return layer.canvas;
  }

  /**
   * A region's mask is being painted on: show a part of it again.
   * @param {Region} region as it is in the document @param {Mask} mask as it is by now @param {Box} box
   */
  touch(region, mask, box) {
    const canvas = this.of(region);
    const layer = this.#layers.get(region.id);
    // What lies beside may have become an edge, or be none any more.
    const around = {
      x0: Math.max(0, box.x0 - EDGE_WIDTH),
      y0: Math.max(0, box.y0 - EDGE_WIDTH),
      x1: Math.min(mask.width, box.x1 + EDGE_WIDTH),
      y1: Math.min(mask.height, box.y1 + EDGE_WIDTH),
    };
    if (box.x0 < box.x1 && box.y0 < box.y1) tint(canvas, mask, /** @type {any} */ (layer).colour, around);
  }

  /** The touched layer is the document's by now. @param {number} id @param {Mask} mask */
  settle(id, mask) {
    const layer = this.#layers.get(id);
    if (layer !== undefined) layer.mask = mask;
  }

  /** Draw a region's layer anew, after painting on it was given up. @param {Region} region */
  reset(region) {
    this.#layers.delete(region.id);
  }

  /** Forget the layers of all others. @param {readonly Region[]} regions */
  keepOnly(regions) {
    const there = new Set(regions.map((region) => region.id));
    for (const id of this.#layers.keys()) if (!there.has(id)) this.#layers.delete(id);
  }
}

/** @param {Mask} mask @returns {Box} */
function whole(mask) {
  return { x0: 0, y0: 0, x1: mask.width, y1: mask.height };
}

/**
 * Colour a part of a layer: see-through inside, opaque at the edge.
 * @param {OffscreenCanvas} canvas @param {Mask} mask @param {string} colour @param {Box} box
 */
function tint(canvas, { width, height, data }, colour, box) {
  const context = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const image = context.createImageData(box.x1 - box.x0, box.y1 - box.y0);
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  // What lies beyond the canvas is as good as inside: its edge is none of the region's.
  const inside = (/** @type {number} */ x, /** @type {number} */ y) =>
    x < 0 || y < 0 || x >= width || y >= height || data[y * width + x] === 1;
  let to = 0;
  for (let y = box.y0; y < box.y1; y++) {
    for (let x = box.x0; x < box.x1; x++, to += 4) {
      const at = y * width + x;
      if (data[at] === 0) continue;
      const within =
        inside(x - EDGE_WIDTH, y) &&
        inside(x + EDGE_WIDTH, y) &&
        inside(x, y - EDGE_WIDTH) &&
        inside(x, y + EDGE_WIDTH);
      image.data.set([red, green, blue, within ? INSIDE : EDGE], to);
    }
  }
  context.putImageData(image, box.x0, box.y0);
}
