// Picture files: the parameters that travel inside them, as JSON in ASCII.
//
// PNG: the iTXt chunk "multsd"; JPEG and WebP: the EXIF user comment.

import { parseJson } from "./json.js";

const KEYWORD = "multsd";
const VERSION = 1;
const MAX_TEXT = 1024 * 1024; // bytes, as the client's own
const PNG = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const EXIF_IFD = 0x8769;
const USER_COMMENT = 0x9286;
const CHARACTER_CODE = 8; // bytes before a user comment's text

/**
 * The request that a picture file carries. Throws an Error where there is none.
 * @param {Blob} file @returns {Promise<Record<string, any>>}
 */
export async function requestInPicture(file) {
  const text = await textInPicture(new Uint8Array(await file.arrayBuffer()));
  if (text === null) throw new Error("this picture carries no parameters");
  const record = parseJson(text);
  if (record?.multsd !== VERSION || typeof record.request !== "object") {
    throw new Error(`expected parameters of version ${VERSION} in the picture, found ${record?.multsd}`);
  }
  return record.request;
}

/** @param {Uint8Array} bytes @returns {Promise<string | null>} */
async function textInPicture(bytes) {
  if (PNG.every((byte, i) => bytes[i] === byte)) return textInPng(bytes);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const exif =
    ascii(bytes, 0, 4) === "RIFF" && ascii(bytes, 8, 12) === "WEBP" ? exifInWebp(bytes, view) : exifInJpeg(bytes, view);
  return exif === null ? null : userComment(exif);
}

/** @param {Uint8Array} bytes @param {number} start @param {number} end */
function ascii(bytes, start, end) {
  return new TextDecoder("latin1").decode(bytes.subarray(start, end));
}

/** @param {Uint8Array} bytes @returns {Promise<string | null>} */
async function textInPng(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = PNG.length; at + 12 <= bytes.length;) {
    const length = view.getUint32(at);
    const data = bytes.subarray(at + 8, at + 8 + length);
    const start = KEYWORD.length + 3; // the keyword's end, whether compressed, and how
    if (ascii(bytes, at + 4, at + 8) === "iTXt" && ascii(data, 0, KEYWORD.length + 1) === `${KEYWORD}\0`) {
      const languageEnd = data.indexOf(0, start);
      const text = data.subarray(data.indexOf(0, languageEnd + 1) + 1);
      return new TextDecoder().decode(data[KEYWORD.length + 1] === 1 ? await inflated(text) : text);
    }
    at += length + 12;
  }
  return null;
}

/**
 * Throws an Error where it unpacks to more than any picture of the service carries: a small file may hold gigabytes.
 * @param {Uint8Array} bytes zlib's format @returns {Promise<ArrayBuffer>}
 */
async function inflated(bytes) {
  const stream = new Blob([/** @type {BlobPart} */ (bytes)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const reader = stream.getReader();
  const pieces = [];
  let length = 0;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return new Blob(pieces).arrayBuffer();
    length += value.length;
    if (length > MAX_TEXT) {
      await reader.cancel();
      throw new Error(`expected parameters of at most ${MAX_TEXT} bytes in the picture, found more`);
    }
    pieces.push(value);
  }
}

/** @param {Uint8Array} bytes @param {DataView} view @returns {Uint8Array | null} */
function exifInWebp(bytes, view) {
  for (let at = 12; at + 8 <= bytes.length;) {
    const length = view.getUint32(at + 4, true);
    if (ascii(bytes, at, at + 4) === "EXIF") return withoutMark(bytes.subarray(at + 8, at + 8 + length));
    at += 8 + length + (length % 2);
  }
  return null;
}

/** @param {Uint8Array} bytes @param {DataView} view @returns {Uint8Array | null} */
function exifInJpeg(bytes, view) {
  for (let at = 2; at + 4 <= bytes.length && bytes[at] === 0xff && bytes[at + 1] !== 0xda;) {
    const length = view.getUint16(at + 2);
    const data = bytes.subarray(at + 4, at + 2 + length);
    if (bytes[at + 1] === 0xe1 && ascii(data, 0, 6) === "Exif\0\0") return withoutMark(data);
    at += 2 + length;
  }
  return null;
}

/** @param {Uint8Array} exif which may begin with a mark of its own */
function withoutMark(exif) {
  return ascii(exif, 0, 6) === "Exif\0\0" ? exif.subarray(6) : exif;
}

/** @param {Uint8Array} exif a TIFF header and its directories @returns {string | null} */
function userComment(exif) {
  const view = new DataView(exif.buffer, exif.byteOffset, exif.byteLength);
  const little = ascii(exif, 0, 2) === "II";
  const entry = (/** @type {number} */ directory, /** @type {number} */ tag) => {
    const count = view.getUint16(directory, little);
    for (let at = directory + 2; at < directory + 2 + count * 12; at += 12) {
      if (view.getUint16(at, little) === tag)
        return { length: view.getUint32(at + 4, little), value: view.getUint32(at + 8, little) };
    }
    return null;
  };
  const directory = entry(view.getUint32(4, little), EXIF_IFD);
  const comment = directory && entry(directory.value, USER_COMMENT);
  if (!comment || ascii(exif, comment.value, comment.value + 5) !== "ASCII") return null;
  return ascii(exif, comment.value + CHARACTER_CODE, comment.value + comment.length);
}
