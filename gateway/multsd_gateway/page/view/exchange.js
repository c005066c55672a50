// The request as JSON and as a command, and the way back: from JSON, or from a picture that carries its parameters.

import { curlCommand, parseJson, prettyJson } from "../core/json.js";
import { requestInPicture } from "../core/pictures.js";
import { documentOf, leftOut, requestBody } from "../core/request.js";
import { address, token } from "../server/api.js";
import { element, setText } from "./dom.js";
import { press } from "./toolbar.js";

/** @typedef {import("../core/store.js").Store} Store */

// As long as the server has not told its own.
const DEFAULT_SIZE = { width: 512, height: 512 };
const DEFAULT_PIXELS = 4 * 1024 * 1024;
const DEFAULT_REGIONS = 32;

/** @param {Store} store */
export function exchange(store) {
  const [exporting, importing] = [element("export", HTMLDialogElement), element("import", HTMLDialogElement)];
  press("open-export", () => {
    const body = requestBody(store.state.document);
    element("json", HTMLTextAreaElement).value = prettyJson(body);
    element("curl", HTMLTextAreaElement).value = curlCommand(body, {
      url: address("multsd"),
      withToken: token() !== null,
    });
    element("copied", HTMLElement).textContent = "";
    exporting.showModal();
  });
  press("copy-json", () => copy("json"));
  press("copy-curl", () => copy("curl"));

  const [text, file] = [element("import-text", HTMLTextAreaElement), element("import-file", HTMLInputElement)];
  const note = element("import-note", HTMLElement);
  press("open-import", () => {
    text.value = file.value = "";
    setText(note, "");
    importing.showModal();
  });
  press("import-cancel", () => importing.close());
  const take = async (/** @type {Blob} */ blob) => {
    const fault = await use(store, blob);
    setText(note, fault ?? "");
    if (fault === null) importing.close();
  };
  press("import-use", () => void take(new Blob([text.value], { type: "application/json" })));
  file.addEventListener("change", () => file.files?.[0] && void take(file.files[0]));
  dropping(store);
}

/** Copy a text; where the browser forbids that, select it. @param {string} id */
async function copy(id) {
  const field = element(id, HTMLTextAreaElement);
  const told = element("copied", HTMLElement);
  try {
    await navigator.clipboard.writeText(field.value);
    told.textContent = "Copied.";
  } catch {
    field.select();
    told.textContent = "The browser did not allow it: the text is selected, copy it with Ctrl+C.";
  }
}

/**
 * Take a request's JSON or a picture of one. @param {Store} store @param {Blob} blob
 * @returns {Promise<string | null>} what is wrong with it
 */
async function use(store, blob) {
  try {
    const body = blob.type.startsWith("image/") ? await requestInPicture(blob) : parseJson(await blob.text());
    const told = store.state.limits;
    const { width, height } = told?.defaults ?? DEFAULT_SIZE;
    const { max_pixels, max_regions, max_image_pixels, max_polygon_points } = told?.limits ?? {};
    const canvas = {
      ...{ width, height, maxPixels: max_pixels ?? DEFAULT_PIXELS, maxRegions: max_regions ?? DEFAULT_REGIONS },
      ...{ maxImagePixels: max_image_pixels ?? DEFAULT_PIXELS, maxPoints: max_polygon_points },
    };
    const document = await documentOf(body, canvas);
    store.begin(document, { shown: null });
    const names = leftOut(body);
    const text = `Left out, since the page has no field for it: ${names.join(", ")}.`;
    if (names.length > 0) store.update({ message: { kind: "note", text } });
    return null;
  } catch (error) {
    return error instanceof SyntaxError
      ? "This is neither JSON nor a picture."
      : String(error instanceof Error ? error.message : error);
  }
}

/** Files may be dropped anywhere. @param {Store} store */
function dropping(store) {
  const show = (/** @type {boolean} */ on) => document.body.classList.toggle("dropping", on);
  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    show(true);
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && show(false));
  document.addEventListener("drop", async (event) => {
    const file = event.dataTransfer?.files[0];
    if (file === undefined) return;
    event.preventDefault();
    show(false);
    const fault = await use(store, file);
    if (fault !== null) store.update({ message: { kind: "error", text: `${file.name}: ${fault}` } });
    else {
      const said = store.state.message === null ? "" : ` ${store.state.message.text}`;
      store.update({ message: { kind: "note", text: `Took over the request of ${file.name}.${said}` } });
    }
  });
}
