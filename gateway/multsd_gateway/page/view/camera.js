// Where the picture lies in the window: zoom and pan. Points are in CSS pixels of the window, or in picture pixels.

/** @typedef {import("../core/masks.js").Point} Point */
/**
 * x, y: where the picture's upper left corner lies.
 * @typedef {{ readonly scale: number, readonly x: number, readonly y: number }} Camera
 */
/** @typedef {{ width: number, height: number }} Size */

const LEAST = 1 / 16;
const MOST = 32;
const BORDER = 16;

/** The whole picture in the middle. @param {Size} picture @param {Size} window @returns {Camera} */
export function fitted(picture, window) {
  const room = { width: Math.max(1, window.width - 2 * BORDER), height: Math.max(1, window.height - 2 * BORDER) };
  const scale = Math.min(2, MOST, room.width / picture.width, room.height / picture.height);
  return {
    scale,
    x: (window.width - picture.width * scale) / 2,
    y: (window.height - picture.height * scale) / 2,
  };
}

/**
 * Zoom about a point of the window, which stays where it is.
 * @param {Camera} camera @param {number} factor @param {Point} about
 */
export function zoomed(camera, factor, about) {
  const scale = Math.max(LEAST, Math.min(MOST, camera.scale * factor));
  const change = scale / camera.scale;
  return { scale, x: about.x - (about.x - camera.x) * change, y: about.y - (about.y - camera.y) * change };
}

/** @param {Camera} camera @param {number} dx @param {number} dy @returns {Camera} */
export function moved(camera, dx, dy) {
  return { ...camera, x: camera.x + dx, y: camera.y + dy };
}

/** A point of the picture. @param {Camera} camera @param {Point} inWindow @returns {Point} */
export function toPicture(camera, inWindow) {
  return { x: (inWindow.x - camera.x) / camera.scale, y: (inWindow.y - camera.y) / camera.scale };
}
