// The gateway's API, as this page uses it. Addresses are relative: the gateway may live under a path of its own.

import { parseJson } from "../core/json.js";
import { serverEvents } from "./events.js";

/** @typedef {import("../core/request.js").Note} Note */

/**
 * The reply of GET /limits.
 * @typedef {{ limits: Record<string, number>, output_formats: string[], schedulers: string[],
 *   defaults: Record<string, any>, checkpoint: { name: string | null, digest: string | null, family: string | null },
 *   optional_inputs: string[], embeds_parameters: boolean }} Limits
 */

/** The server said no, and why. */
export class ServerError extends Error {
  /**
   * @param {number} status
   * @param {{ message?: string, errors?: Note[], request_id?: string, retry_after?: number }} body
   */
  constructor(status, body) {
    super(body.message ?? `the server answered with status ${status}`);
    this.status = status;
    this.errors = body.errors ?? [];
    this.requestId = body.request_id ?? null;
    this.retryAfter = body.retry_after ?? null;
  }
}

/** The server is not there, or was not there to the end. */
export class ConnectionError extends Error {}

const TOKEN = "multsd-token";
const LOST = "the connection was lost before the picture was ready";
const SILENCE_MS = 15_000; // until the server is asked for a sign of life
const MISSED_HEARTBEATS = 3; // after which a stream is lost, whatever the server says elsewhere
const SIGN_OF_LIFE_MS = 5_000;

/** Whether a header can carry a token: visible ASCII, as the server's tokens are. @param {string} value */
export function sendable(value) {
  return /^[\x21-\x7e]+$/.test(value);
}

/** The token lives as long as the browser's tab. @returns {string | null} */
export function token() {
  const known = sessionStorage.getItem(TOKEN);
  return known !== null && sendable(known) ? known : null;
}

/** @param {string} value which is sendable */
export function useToken(value) {
  sessionStorage.setItem(TOKEN, value);
}

/** @param {string} path @returns {string} whole address */
export function address(path) {
  return new URL(path, document.baseURI).href;
}

/** @param {string} path @param {RequestInit} [options] @returns {Promise<Response>} */
async function ask(path, options = {}) {
  const known = token();
  const headers = { ...options.headers, ...(known === null ? {} : { Authorization: `Bearer ${known}` }) };
  let response;
  try {
    response = await fetch(address(path), { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ConnectionError("the server cannot be reached");
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

/** @param {Response} response @returns {Promise<ServerError>} */
async function errorOf(response) {
  const retry = Number(response.headers.get("Retry-After"));
  const text = await response.text().catch(() => "");
  let body;
  try {
    body = parseJson(text);
  } catch {
    body = {};
  }
  return new ServerError(response.status, { ...body, ...(retry > 0 ? { retry_after: retry } : {}) });
}

/** Throws ServerError and ConnectionError. @returns {Promise<Limits>} */
export async function limits() {
  return (await ask("limits")).json();
}

/** Ask for a sign of life. Throws an Error where there is none. */
export async function signOfLife() {
  const options = { cache: /** @type {const} */ ("no-store"), signal: AbortSignal.timeout(SIGN_OF_LIFE_MS) };
  const { status } = await fetch(address("healthz"), options);
  if (status >= 500) throw new ConnectionError("the server cannot be reached"); // a proxy says so, in its stead
}

/**
 * Paint a picture, and be told on the way. Throws ServerError and ConnectionError, and an AbortError once the signal is
 * aborted, which stops the work.
 * @param {Record<string, any>} body @param {(event: import("./events.js").ServerEvent) => void} onEvent
 * @param {AbortSignal} signal @returns {Promise<Record<string, any>>} the data of the `result` event
 */
export async function paint(body, onEvent, signal) {
  const silence = new AbortController();
  const watch = new SilenceWatch(() => silence.abort());
  try {
    const response = await ask("multsd/stream", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal: AbortSignal.any([signal, silence.signal]),
    });
    watch.expectHeartbeats(Number(response.headers.get("Heartbeat-Seconds")) * 1000);
    const stream = /** @type {NonNullable<typeof response.body>} */ (response.body);
    for await (const event of serverEvents(stream, () => watch.heard())) {
      if (event.name === "result") return event.data;
      if (event.name === "error") throw new ServerError(event.data.status, event.data);
      onEvent(event);
    }
  } catch (error) {
    if (error instanceof ServerError || error instanceof ConnectionError || signal.aborted) throw error;
    throw new ConnectionError(LOST);
  } finally {
    watch.stop();
  }
  throw new ConnectionError(LOST);
}

/**
 * Asks for a sign of life when nothing is heard: a connection may be dead without anybody saying so. One that has missed
 * its heartbeats is dead even if the server answers on another.
 */
class SilenceWatch {
  /** @param {() => void} onDead */
  constructor(onDead) {
    this.onDead = onDead;
    this.timer = 0;
    this.stopped = false;
    this.pauseMs = SILENCE_MS;
    this.longestMs = Infinity;
    this.heard();
  }

  /** @param {number} everyMs 0: the server promises none */
  expectHeartbeats(everyMs) {
    if (everyMs > 0) {
      this.pauseMs = 1.5 * everyMs;
      this.longestMs = MISSED_HEARTBEATS * everyMs;
    }
    this.heard();
  }

  heard() {
    this.heardAt = performance.now();
    this.#wait();
  }

  stop() {
    clearTimeout(this.timer);
    this.stopped = true;
  }

  #wait() {
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => this.#probe(), this.pauseMs);
  }

  async #probe() {
    const before = this.heardAt;
    const alive = await signOfLife().then(
      () => true,
      () => false,
    );
    if (this.stopped || this.heardAt !== before) return;
    if (alive && performance.now() - before < this.longestMs) this.#wait();
    else this.onDead();
  }
}
