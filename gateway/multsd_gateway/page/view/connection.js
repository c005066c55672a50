// Whether the server is there, and whether it wants a token.

import { ServerError, limits, sendable, signOfLife, token, useToken } from "../server/api.js";
import { element, setShown, setText } from "./dom.js";
import { press } from "./toolbar.js";

/** @typedef {import("../core/store.js").Store} Store */

const AGAIN_MS = 4000;
const SIGN_OF_LIFE_MS = 10_000; // between two, while nothing else is asked of the server
const UNKNOWN = "The server does not know this token.";
const NOT_SENDABLE = "Expected letters, digits and signs of ASCII without spaces, as all tokens are made of.";
const BACK = "The server is there again. The picture was not made.";

/** Ask the server for its limits until it tells them. @param {Store} store @returns {() => Promise<void>} asks now */
export function connection(store) {
  let timer = 0;
  const askLater = () => {
    clearTimeout(timer);
    timer = window.setTimeout(ask, AGAIN_MS);
  };

  const ask = async () => {
    clearTimeout(timer);
    try {
      const told = await limits();
      const { message } = store.state;
      store.update({
        limits: told,
        connection: "there",
        message: message?.lost ? { kind: "note", text: BACK } : message,
      });
    } catch (error) {
      if (error instanceof ServerError && error.status === 401) store.update({ connection: "token" });
      else {
        store.update({ connection: "lost" });
        askLater();
      }
    }
  };

  press("retry", () => void ask());
  window.addEventListener("online", () => void ask());
  window.addEventListener("offline", () => store.update({ connection: "lost" }));
  watch(store);
  tokenField(store, ask);
  store.subscribe((state, before) => {
    if (state.connection === before?.connection && state.limits === before?.limits) return;
    setShown("lost", state.connection === "lost");
    if (state.connection === "lost" && before?.connection === "there") askLater();
    element("checkpoint", HTMLElement).textContent = checkpointText(state.limits);
  });
  return ask;
}

/** Notice that the server has gone although nothing is asked of it. @param {Store} store */
function watch(store) {
  const idle = () => store.state.connection === "there" && store.state.run === null; // else others notice
  const look = async () => {
    if (document.visibilityState !== "visible" || !idle()) return;
    try {
      await signOfLife();
    } catch {
      if (idle()) store.update({ connection: "lost" });
    }
  };
  setInterval(() => void look(), SIGN_OF_LIFE_MS);
  document.addEventListener("visibilitychange", () => void look());
}

/** @param {Store} store @param {() => Promise<void>} ask */
function tokenField(store, ask) {
  const field = element("token", HTMLInputElement);
  const note = element("token-note", HTMLElement);
  const refuse = (/** @type {string} */ text) => {
    setText(note, text);
    field.setAttribute("aria-invalid", String(text !== ""));
  };
  element("token-form", HTMLFormElement).addEventListener("submit", async (event) => {
    event.preventDefault();
    const value = field.value.trim();
    if (!sendable(value)) {
      refuse(NOT_SENDABLE);
      field.focus();
      return;
    }
    useToken(value);
    await ask();
    if (store.state.connection === "token") refuse(UNKNOWN);
  });
  store.subscribe((state, before) => {
    if (state.connection === before?.connection) return;
    setShown("token-form", state.connection === "token");
    const asked = state.connection === "token";
    refuse(asked && token() !== null ? UNKNOWN : "");
    if (asked) field.focus();
  });
}

/** @param {import("../server/api.js").Limits | null} told */
function checkpointText(told) {
  if (told === null) return "";
  const { name, digest } = told.checkpoint;
  return name === null
    ? ""
    : `Paints with ${name}${digest === null ? "" : ` (${digest.replace("sha256:", "").slice(0, 8)})`}`;
}
