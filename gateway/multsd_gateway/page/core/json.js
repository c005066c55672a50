// JSON as people read and copy it.

import { FORMATS } from "./document.js";

/** A seed may be larger than the numbers of JavaScript hold exactly; it is read as the text that it is. */
const LONG_SEED = /(?<!\\)("seed"\s*:\s*)(\d{16,20})(?=\s*[,}])/g;

/**
 * Raw line breaks inside strings are allowed, as in the API. Throws a SyntaxError.
 * @param {string} text @returns {any}
 */
export function parseJson(text) {
  return JSON.parse(withoutRawControls(text).replace(LONG_SEED, '$1"$2"'));
}

/** Control characters inside strings as JSON's own escapes. @param {string} text */
function withoutRawControls(text) {
  let inside = false;
  return text.replace(/\\[^]|["\0-\x1f]/g, (found) => {
    if (found === '"') inside = !inside;
    const raw = inside && found < " ";
    return raw ? `\\u${found.charCodeAt(0).toString(16).padStart(4, "0")}` : found;
  });
}

/** Indented, with lists of numbers on one line. @param {unknown} value */
export function prettyJson(value) {
  // A line break between brackets cannot be part of a string: JSON has it escaped there.
  return JSON.stringify(value, null, 2).replace(/\[\n\s*(-?[\d.]+(?:,\n\s*-?[\d.]+)*)\n\s*\]/g, (_, numbers) => {
    return `[${numbers.replace(/,\n\s*/g, ", ")}]`;
  });
}

/**
 * A command that paints the same picture. The body goes through standard input: masks may be longer than arguments.
 * @param {Record<string, any>} body @param {{ url: string, withToken: boolean }} server
 */
export function curlCommand(body, { url, withToken }) {
  // A file's ending is not for a document of somewhere else to choose: another would be a path.
  const format = FORMATS.includes(body.output_format) ? body.output_format : "jpeg";
  const headers = ["Content-Type: application/json", `Accept: image/${format}`].map((each) => `-H ${quoted(each)}`);
  if (withToken) headers.push(`-H "Authorization: Bearer $MULTSD_TOKEN"`);
  const head = `curl -s ${quoted(url)} ${headers.join(" ")} --data-binary @- -o ${quoted(`picture.${format}`)}`;
  return `${head} <<'END'\n${JSON.stringify(body)}\nEND`; // JSON has no line of its own that says END
}

/** One word of a shell's command line, whatever is in it. @param {string} text */
function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
