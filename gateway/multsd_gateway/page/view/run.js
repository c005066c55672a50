// Generate: send the document, follow the stream, show the picture; cancel on the way.

import { pageNotes, requestBody } from "../core/request.js";
import { base64Blob } from "../core/shapes.js";
import { painted } from "../core/document.js";
import { ConnectionError, ServerError, paint } from "../server/api.js";
import { announce, element, setText } from "./dom.js";
import { takeSize } from "./fields.js";
import { focusFirstError } from "./notes.js";
import { press } from "./toolbar.js";

/** @typedef {import("../core/store.js").Store} Store */
/** @typedef {import("../core/store.js").Result} Result */
/** @typedef {import("../core/store.js").Run} Run */
/** @typedef {import("../core/request.js").Note} Note */
/** @typedef {(notes: Note[]) => Note[] | null} Placed notes by the page's names, null where they have no place there */

const PREVIEWS = 20; // of a picture, at most
const MAX_PICTURES = 24; // in the history

const DROPPED = "multsd-dropped"; // in this tab's own store: a picture was at work when the page was left

/**
 * @param {Store} store @param {(result: Result) => Promise<void>} keep @param {(id: number) => Promise<void>} forget
 * @returns {() => void} starts a picture, unless one is at work
 */
export function runs(store, keep, forget) {
  /** @type {AbortController | null} */
  let work = null;

  const generate = () => {
    if (work !== null) return;
    takeSize(store); // a field that is still being written in has told nothing yet
    if (store.state.refused.length > 0) {
      focusFirstError();
      return;
    }
    const controller = (work = new AbortController());
    void run(store, controller.signal, keep, forget).finally(() => {
      work = null;
      const lost = document.activeElement === null || document.activeElement === document.body;
      if (lost) element("generate", HTMLButtonElement).focus();
    });
  };

  element("request", HTMLFormElement).addEventListener("submit", (event) => {
    event.preventDefault();
    generate();
  });
  press("cancel", () => work?.abort());
  window.addEventListener("pagehide", () => work !== null && sessionStorage.setItem(DROPPED, "yes"));
  if (sessionStorage.getItem(DROPPED) !== null) {
    sessionStorage.removeItem(DROPPED);
    const text = "The picture that was on its way was dropped when the page was left.";
    store.update({ message: { kind: "note", text } });
  }
  store.subscribe((state, before) => {
    if (state.run !== before?.run) showRun(state.run);
    if (state.message !== before?.message) {
      const message = element("message", HTMLElement);
      setText(message, state.message?.text ?? "");
      message.classList.toggle("told", state.message?.kind === "note");
    }
  });
  return generate;
}

/**
 * @param {Store} store @param {AbortSignal} signal @param {(result: Result) => Promise<void>} keep
 * @param {(id: number) => Promise<void>} forget
 */
async function run(store, signal, keep, forget) {
  const { document, limits, begun } = store.state;
  const { width, height } = document;
  const ids = painted(document).map((region) => region.id);
  const steps = Number(document.settings.ddim_steps || limits?.defaults.ddim_steps);
  const previews = limits?.optional_inputs.includes("preview_every") && steps >= 1;
  const body = {
    ...requestBody(document),
    ...(previews ? { preview_every: previewEvery(steps, limits?.limits.max_steps) } : {}),
  };
  // Whoever starts a picture wants to see it; what is chosen from then on stays chosen.
  const show = store.state.show === "regions" ? "both" : store.state.show;
  const start = performance.now();
  // What is said of a document does not hold for another one that took its place meanwhile.
  /** @type {Placed} */
  const placed = (notes) => (store.state.begun === begun ? pageNotes(notes, ids) : null);
  store.update({
    run: { phase: "sending", position: null, step: 0, steps: 0, width, height },
    show,
    errors: [],
    warnings: [],
    message: null,
  });
  try {
    const reply = await paint(body, (event) => follow(store, event), signal);
    const undisturbed = store.state.show === show && store.state.document.regions === document.regions;
    const next = undisturbed && !store.state.stroke ? "picture" : store.state.show;
    const seconds = (performance.now() - start) / 1000;
    await finish(store, body, reply, { placed, seconds, show: next, keep, forget });
  } catch (error) {
    explain(store, error, placed, signal.aborted);
  } finally {
    store.state.preview?.close();
    store.update({ run: null, preview: null });
  }
  if (store.state.errors.length > 0) focusFirstError();
}

/**
 * Within the server's bound whatever the steps are: the fault of too many is theirs alone.
 * @param {number} steps @param {number} [most]
 */
function previewEvery(steps, most = Infinity) {
  return Math.max(1, Math.min(Math.round(steps / PREVIEWS), most));
}

/** @param {Store} store @param {import("../server/events.js").ServerEvent} event */
function follow(store, { name, data }) {
  const now = store.state.run;
  if (now === null) return;
  if (name === "queued") store.update({ run: { ...now, phase: "queued", position: data.position } });
  if (name === "progress") {
    store.update({ run: { ...now, phase: "painting", step: data.step, steps: data.num_inference_steps } });
    if ((data.step * 4) % data.num_inference_steps < 4) announce(`Step ${data.step} of ${data.num_inference_steps}`);
  }
  if (name === "preview") void showPreview(store, base64Blob(data.image, data.media_type));
}

/** @param {Store} store @param {Blob} blob */
async function showPreview(store, blob) {
  const image = await createImageBitmap(blob);
  const { run: now, preview } = store.state;
  if (now === null) {
    image.close();
    return;
  }
  store.update({ preview: image });
  preview?.close();
}

/**
 * @param {Store} store @param {Record<string, any>} body @param {Record<string, any>} reply
 * @param {{ placed: Placed, seconds: number, show: "regions" | "both" | "picture",
 *   keep: (result: Result) => Promise<void>, forget: (id: number) => Promise<void> }} more show: from now on
 */
async function finish(store, { preview_every: _, ...body }, reply, { placed, seconds, show, keep, forget }) {
  const blob = base64Blob(reply.image, reply.media_type);
  const { warnings } = reply;
  const id = Math.max(Date.now(), ...store.state.results.map((result) => result.id + 1)); // apart from other windows'
  const result = { id, blob, url: URL.createObjectURL(blob), body: { ...body, seed: reply.seed }, warnings };
  const dropped = store.state.results.slice(0, Math.max(0, store.state.results.length + 1 - MAX_PICTURES));
  const results = [...store.state.results.slice(dropped.length), result];
  store.update({ results, shown: id, warnings: placed(warnings) ?? store.state.warnings, show });
  const noted = warnings.length > 0 ? `, with ${warnings.length} warnings` : "";
  announce(`The picture is ready after ${seconds.toFixed(0)} seconds${noted}`);
  await keep(result);
  for (const old of dropped) {
    URL.revokeObjectURL(old.url);
    await forget(old.id);
  }
}

/** @param {Store} store @param {unknown} error @param {Placed} placed @param {boolean} cancelled */
function explain(store, error, placed, cancelled) {
  if (cancelled) {
    store.update({ message: { kind: "note", text: "Cancelled." } });
  } else if (error instanceof ServerError) {
    const errors = placed(error.errors);
    const wait = error.retryAfter === null ? "" : ` Try again in ${error.retryAfter} s.`;
    const fault = errors === null ? `the document of before was not painted: ${error.message}` : error.message;
    const text = errors !== null && errors.length > 0 ? null : `${sentence(fault)}${wait}`;
    store.update({ errors: errors ?? store.state.errors, message: text === null ? null : { kind: "error", text } });
    if (error.status === 401) store.update({ connection: "token" });
  } else if (error instanceof ConnectionError) {
    store.update({ connection: "lost", message: { kind: "error", text: sentence(error.message), lost: true } });
  } else {
    throw error;
  }
}

/** @param {string} message */
function sentence(message) {
  return `${message.charAt(0).toUpperCase()}${message.slice(1)}.`;
}

/** @param {Run | null} now */
function showRun(now) {
  element("run", HTMLElement).hidden = now === null;
  element("cancel", HTMLElement).hidden = now === null;
  element("generate", HTMLButtonElement).disabled = now !== null;
  if (now === null) return;
  const progress = element("progress", HTMLProgressElement);
  if (now.steps > 0) {
    progress.max = now.steps;
    progress.value = now.step;
  } else progress.removeAttribute("value");
  element("run-text", HTMLElement).textContent = runText(now);
}

/** @param {Run} now */
function runText({ phase, position, step, steps }) {
  if (phase === "painting") return `Step ${step} of ${steps}`;
  if (phase === "queued" && position === 0) return "Waiting, this picture is next";
  if (phase === "queued") return `Waiting, ${position === 1 ? "one picture" : `${position} pictures`} before this one`;
  return "Sent, waiting for the server";
}
