// JSON as people read and copy it.

/** A seed may be larger than the numbers of JavaScript hold exactly; it is read as the text that it is. */
const LONG_SEED = /(?<!\\)("seed"\s*:\s*)(\d{16,20})(?=\s*[,}])/g;

/** Throws a SyntaxError. @param {string} text @returns {any} */
export function parseJson(text) {
  return JSON.parse(text.replace(LONG_SEED, '$1"$2"'));
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
  const format = body.output_format ?? "jpeg";
  const token = withToken ? ` -H "Authorization: Bearer $MULTSD_TOKEN"` : "";
  const head = `curl -s '${url}' -H 'Content-Type: application/json' -H 'Accept: image/${format}'${token}`;
  return `${head} --data-binary @- -o picture.${format} <<'END'\n${JSON.stringify(body)}\nEND`;
}
