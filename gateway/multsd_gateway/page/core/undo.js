// What can be undone: documents before and after this one, within a bound of memory.

/** @typedef {import("./document.js").Document} Document */

const MAX_STEPS = 200;
const MAX_BYTES = 256 * 1024 * 1024; // of masks that differ

/**
 * merge: what the last edit was of; the next of the same is part of it.
 * @typedef {{ readonly past: readonly Document[], readonly future: readonly Document[],
 *   readonly merge: string | null }} History
 */

/** @type {History} */
export const NO_HISTORY = { past: [], future: [], merge: null };

/**
 * The history after an edit of `before`.
 * @param {History} history @param {Document} before @param {string | null} merge @returns {History}
 */
export function afterEdit(history, before, merge) {
  if (merge !== null && merge === history.merge && history.past.length > 0) return { ...history, future: [] };
  return { past: bounded([...history.past, before]), future: [], merge };
}

/**
 * @param {History} history @param {Document} now
 * @returns {{ document: Document, history: History } | null} null where there is nothing to undo
 */
export function undone({ past, future }, now) {
  const document = past.at(-1);
  if (document === undefined) return null;
  return { document, history: { past: past.slice(0, -1), future: [now, ...future], merge: null } };
}

/**
 * @param {History} history @param {Document} now
 * @returns {{ document: Document, history: History } | null} null where there is nothing to redo
 */
export function redone({ past, future }, now) {
  const [document, ...rest] = future;
  if (document === undefined) return null;
  return { document, history: { past: [...past, now], future: rest, merge: null } };
}

/** The latest documents within the bounds. @param {Document[]} past */
function bounded(past) {
  const seen = new Set();
  let bytes = 0;
  for (let i = past.length - 1; i >= 0; i--) {
    for (const { mask } of past[i].regions) {
      if (!seen.has(mask.data)) bytes += mask.data.length;
      seen.add(mask.data);
    }
    if (bytes > MAX_BYTES || past.length - i > MAX_STEPS) return past.slice(i + 1);
  }
  return past;
}
