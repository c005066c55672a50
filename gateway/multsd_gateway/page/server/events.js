// Server-sent events out of a response's body (WHATWG HTML, 9.2.6).

import { parseJson } from "../core/json.js";

/** @typedef {{ name: string, data: any }} ServerEvent data: the event's JSON */

/**
 * @param {ReadableStream<Uint8Array<ArrayBuffer>>} body @param {() => void} heard called with whatever comes, be it a
 * comment @returns {AsyncGenerator<ServerEvent>}
 */
export async function* serverEvents(body, heard) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let searched = 0; // where no end of an event has to be looked for again
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    heard();
    text += value;
    for (let end = text.indexOf("\n\n", searched); end >= 0; end = text.indexOf("\n\n")) {
      const event = readEvent(text.slice(0, end));
      text = text.slice(end + 2);
      if (event !== null) yield event;
    }
    searched = Math.max(0, text.length - 1);
  }
}

/** @param {string} block lines of one event @returns {ServerEvent | null} null for a comment */
function readEvent(block) {
  let name = "message";
  const data = [];
  for (const line of block.split("\n")) {
    const [, field, value] = /^([^:]*)(?:: ?(.*))?$/.exec(line) ?? [];
    if (field === "event") name = value ?? "";
    if (field === "data") data.push(value ?? "");
  }
  return data.length > 0 ? { name, data: parseJson(data.join("\n")) } : null;
}
