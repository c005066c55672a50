// Masks as pixels: making them, painting on them, and the run lengths that they travel as.
//
// Coordinates run from the upper left corner, x to the right and y down; pixel (x, y) covers x to x + 1, y to y + 1.

/**
 * Pixels row by row, 1 inside and 0 outside. A mask that is part of a document is never changed: `copied` makes one to
 * paint on.
 * @typedef {{ readonly width: number, readonly height: number, readonly data: Uint8Array }} Mask
 */

/**
 * A rectangle of pixels, x0 <= x < x1 and y0 <= y < y1.
 * @typedef {{ x0: number, y0: number, x1: number, y1: number }} Box
 */

/**
 * COCO's uncompressed run lengths, but along rows: pixels outside, inside, outside and so on; the first may be 0.
 * @typedef {{ size: [number, number], counts: number[] }} RunLengths
 */

/** @typedef {{ x: number, y: number }} Point */

const THRESHOLD = 128 * 255;

/** @param {number} width @param {number} height @returns {Mask} */
export function emptyMask(width, height) {
  return { width, height, data: new Uint8Array(width * height) };
}

/** @param {Mask} mask @returns {Mask} */
export function copied(mask) {
  return { ...mask, data: mask.data.slice() };
}

/** @param {Mask} mask @returns {Mask} */
export function inverted(mask) {
  return { ...mask, data: mask.data.map((inside) => 1 - inside) };
}

/** @param {Mask} mask */
export function isEmpty(mask) {
  return !mask.data.includes(1);
}

/**
 * Nearest neighbour, as the server stretches masks.
 * @param {Mask} mask @param {number} width @param {number} height @returns {Mask}
 */
export function stretched(mask, width, height) {
  if (mask.width === width && mask.height === height) return mask;
  const result = emptyMask(width, height);
  for (let y = 0; y < height; y++) {
    const row = Math.floor(((y + 0.5) * mask.height) / height) * mask.width;
    for (let x = 0; x < width; x++) {
      result.data[y * width + x] = mask.data[row + Math.floor(((x + 0.5) * mask.width) / width)];
    }
  }
  return result;
}

/** @param {Mask} mask @returns {RunLengths} */
export function runLengths(mask) {
  const counts = [];
  let inside = 0;
  for (let start = 0; start < mask.data.length; inside = 1 - inside) {
    const next = mask.data.indexOf(1 - inside, start);
    const end = next < 0 ? mask.data.length : next;
    counts.push(end - start);
    start = end;
  }
  return { size: [mask.height, mask.width], counts };
}

/**
 * Throws an Error that says what was expected.
 * @param {RunLengths} runs @returns {Mask}
 */
export function maskOfRuns({ size, counts }) {
  const [height, width] = size;
  const pixels = counts.reduce((sum, count) => sum + count, 0);
  if (pixels !== width * height) {
    throw new Error(`expected run lengths of ${width * height} pixels in all, found ${pixels}`);
  }
  const mask = emptyMask(width, height);
  let at = 0;
  counts.forEach((count, number) => {
    if (number % 2 === 1) mask.data.fill(1, at, at + count);
    at += count;
  });
  return mask;
}

/**
 * Inside is where the brightest colour channel times alpha is at least half, as the server reads mask images.
 * @param {ImageData} image @returns {Mask}
 */
export function maskOfPixels({ width, height, data }) {
  const mask = emptyMask(width, height);
  for (let pixel = 0, at = 0; pixel < mask.data.length; pixel++, at += 4) {
    const brightest = Math.max(data[at], data[at + 1], data[at + 2]);
    mask.data[pixel] = brightest * data[at + 3] >= THRESHOLD ? 1 : 0;
  }
  return mask;
}

/**
 * A box that lies on the canvas and holds whole pixels.
 * @param {Mask} mask @param {number} x0 @param {number} y0 @param {number} x1 @param {number} y1 @returns {Box}
 */
function onCanvas(mask, x0, y0, x1, y1) {
  const inside = (/** @type {number} */ value, /** @type {number} */ most) => Math.max(0, Math.min(most, value));
  return {
    x0: inside(Math.floor(x0), mask.width),
    y0: inside(Math.floor(y0), mask.height),
    x1: inside(Math.ceil(x1), mask.width),
    y1: inside(Math.ceil(y1), mask.height),
  };
}

/**
 * Set every pixel of a row whose centre lies between two coordinates.
 * @param {Mask} mask @param {number} y @param {number} left @param {number} right @param {0 | 1} value
 */
function setRow(mask, y, left, right, value) {
  const first = Math.max(0, Math.ceil(left - 0.5));
  const end = Math.min(mask.width, Math.floor(right - 0.5) + 1);
  if (first < end) mask.data.fill(value, y * mask.width + first, y * mask.width + end);
}

/**
 * A round brush from one point to another: every pixel whose centre is at most `radius` away from the line.
 * @param {Mask} mask changed @param {Point} from @param {Point} to @param {number} radius @param {0 | 1} value
 * @returns {Box} what may have changed
 */
export function paintStroke(mask, from, to, radius, value) {
  const reach = Math.max(radius, 0.75); // never between pixel centres
  const box = onCanvas(
    mask,
    Math.min(from.x, to.x) - reach,
    Math.min(from.y, to.y) - reach,
    Math.max(from.x, to.x) + reach,
    Math.max(from.y, to.y) + reach,
  );
  const [dx, dy] = [to.x - from.x, to.y - from.y];
  const length = dx * dx + dy * dy;
  for (let y = box.y0; y < box.y1; y++) {
    for (let x = box.x0; x < box.x1; x++) {
      const [px, py] = [x + 0.5 - from.x, y + 0.5 - from.y];
      const along = length === 0 ? 0 : Math.max(0, Math.min(1, (px * dx + py * dy) / length));
      const [ex, ey] = [px - along * dx, py - along * dy];
      if (ex * ex + ey * ey <= reach * reach) mask.data[y * mask.width + x] = value;
    }
  }
  return box;
}

/**
 * @param {Mask} mask changed @param {Box} box @param {0 | 1} value @returns {Box} what may have changed
 */
export function paintRectangle(mask, box, value) {
  const cut = onCanvas(mask, Math.round(box.x0), Math.round(box.y0), Math.round(box.x1), Math.round(box.y1));
  for (let y = cut.y0; y < cut.y1; y++) {
    mask.data.fill(value, y * mask.width + cut.x0, y * mask.width + Math.max(cut.x0, cut.x1));
  }
  return cut;
}

/**
 * The ellipse that fills a box.
 * @param {Mask} mask changed @param {Box} box @param {0 | 1} value @returns {Box} what may have changed
 */
export function paintEllipse(mask, box, value) {
  const [cx, cy] = [(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2];
  const [rx, ry] = [(box.x1 - box.x0) / 2, (box.y1 - box.y0) / 2];
  const cut = onCanvas(mask, box.x0, box.y0, box.x1, box.y1);
  for (let y = cut.y0; y < cut.y1; y++) {
    const height = (y + 0.5 - cy) / ry;
    const half = rx * Math.sqrt(Math.max(0, 1 - height * height));
    if (half > 0) setRow(mask, y, cx - half, cx + half, value);
  }
  return cut;
}

/**
 * A closed outline by the even-odd rule, of pixels whose centre is inside; of those on the outline itself the same ones
 * as on the server, where each crossing begins or ends a run.
 * @param {Mask} mask changed @param {[number, number][]} points @returns {Box} what may have changed
 */
export function paintPolygon(mask, points) {
  const column = (/** @type {number} */ x) => Math.max(0, Math.min(mask.width, Math.ceil(x - 0.5)));
  for (let y = 0; y < mask.height; y++) {
    const columns = [];
    for (let i = 0; i < points.length; i++) {
      const [[x0, y0], [x1, y1]] = [points[i], points[(i + 1) % points.length]];
      // In the server's own order, whose rounding decides where a crossing lies on a centre.
      if (y0 <= y + 0.5 !== y1 <= y + 0.5) columns.push(column(x0 + (y + 0.5 - y0) * ((x1 - x0) / (y1 - y0))));
    }
    columns.sort((a, b) => a - b);
    for (let i = 0; i + 1 < columns.length; i += 2) {
      mask.data.fill(1, y * mask.width + columns[i], y * mask.width + columns[i + 1]);
    }
  }
  return { x0: 0, y0: 0, x1: mask.width, y1: mask.height };
}

/**
 * Set the connected area around a pixel that has the pixel's own value, up to what `barriers` hold.
 * @param {Mask} mask changed @param {Point} start @param {0 | 1} value @param {Mask[]} barriers
 * @returns {Box} what may have changed
 */
export function floodFill(mask, start, value, barriers) {
  const { width, height, data } = mask;
  const [x, y] = [Math.floor(start.x), Math.floor(start.y)];
  const seed = y * width + x;
  if (x < 0 || y < 0 || x >= width || y >= height || data[seed] === value) return { x0: 0, y0: 0, x1: 0, y1: 0 };
  const walls = barriers.filter((barrier) => barrier.data[seed] === 0);
  const free = (/** @type {number} */ at) => data[at] !== value && walls.every((wall) => wall.data[at] === 0);
  const waiting = [seed];
  while (waiting.length > 0) {
    let at = /** @type {number} */ (waiting.pop());
    if (!free(at)) continue;
    const row = at - (at % width);
    while (at > row && free(at - 1)) at--;
    let [above, below] = [false, false]; // whether the run beside this one has its seed already
    for (; at < row + width && free(at); at++) {
      data[at] = value;
      const [up, down] = [row > 0 && free(at - width), row + width < data.length && free(at + width)];
      if (up && !above) waiting.push(at - width);
      if (down && !below) waiting.push(at + width);
      [above, below] = [up, down];
    }
  }
  return { x0: 0, y0: 0, x1: width, y1: height };
}
