// The page: one store, and views of it.

import { emptyDocument } from "./core/document.js";
import { Store } from "./core/store.js";
import { CanvasView } from "./view/canvas.js";
import { connection } from "./view/connection.js";
import { element } from "./view/dom.js";
import { exchange } from "./view/exchange.js";
import { fields } from "./view/fields.js";
import { hint } from "./view/hint.js";
import { notes } from "./view/notes.js";
import { presets } from "./view/presets.js";
import { regionList } from "./view/regions.js";
import { results } from "./view/results.js";
import { runs } from "./view/run.js";
import { Keeper } from "./view/saving.js";
import { toolbar } from "./view/toolbar.js";
import { Tools } from "./view/tools.js";

const store = new Store(emptyDocument(512, 512));
const keeper = new Keeper(store);
await keeper.start();

const canvas = element("canvas", HTMLCanvasElement);
const view = new CanvasView(canvas, store);
const { strokes } = new Tools(canvas, view, store);
const generate = runs(
  store,
  (result) => keeper.keepPicture(result),
  (id) => keeper.forgetPicture(id),
);
toolbar(store, view, strokes, generate);
regionList(store);
fields(store);
notes(store); // after the fields and regions that it writes beside
results(store, (id) => keeper.forgetPicture(id));
exchange(store);
hint(store);
presets(store, () => !keeper.touched);
const ask = connection(store);
await ask();
document.documentElement.dataset.ready = "true";
