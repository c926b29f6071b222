/** Puts the page together: the address is the state, everything else follows it. */

import * as api from "./api.js";
import { $, announce, toast, typing } from "./dom.js";
import { acceptPictures } from "./drop.js";
import { keep } from "./query_images.js";
import { whenReady } from "./readiness.js";
import { Results } from "./results.js";
import { SearchBar } from "./searchbar.js";
import { Uploads } from "./uploads.js";
import { HOME, isSearch, read, write } from "./url.js";
import { Viewer } from "./viewer.js";

let state = read();
let shown = null;
let ready = false;
let leaving = false; // going back in the history takes effect later
let listed = false;

/** Changes the state: a new entry of the history unless `replace`. An entry that only opens a picture says so. */
function go(changes, { replace = false } = {}) {
  const next = { ...state, ...changes };
  replace ||= write(next) === write(state); // the same again is no new entry
  const opens = Boolean(next.view) && (replace ? Boolean(history.state?.opens) : !state.view);
  state = next;
  history[replace ? "replaceState" : "pushState"]({ opens }, "", write(state));
  render();
}

/** Closes the open picture: back to what it was opened from, so that Back does not open it again. */
function close() {
  if (leaving) return;
  leaving = Boolean(history.state?.opens);
  if (leaving) history.back();
  else go({ view: "" }, { replace: true });
}

/** A new search, or the same once more: what was asked before is forgotten, filters stay. */
function ask(query) {
  shown = null;
  const { text, picture, region, image, points, box } = HOME;
  const calm = { text, picture, region, image, points, box, view: "", min: null, unlike: HOME.unlike };
  go({ ...calm, ...query });
  window.scrollTo({ top: 0 });
}

const bar = new SearchBar({ ask, go });
const results = new Results({ ask, open: (view) => go({ view }), loaded });
const viewer = new Viewer({
  ask,
  unlike: (region) => go({ view: "", unlike: [...new Set([...state.unlike, region])] }, { replace: true }),
  open: (view) => go({ view }, { replace: true }),
  close,
  closed: () => results.focus(),
  neighbour: (id, step) => results.neighbour(id, step),
  deleted: (id) => {
    results.forget(id);
    toast("The picture is deleted.");
  },
});
const uploads = new Uploads({ changed: () => ready && !isSearch(state) && results.reload() });

function render() {
  const { view, ...query } = state;
  const key = JSON.stringify(query);
  bar.show(state);
  if (!ready) return; // the notice says what the page waits for
  if (key !== shown) {
    shown = key;
    results.show(state);
  }
  viewer.show(state, results.hit(view));
  document.title = state.text ? `${state.text} · Region Search` : "Region Search";
}

let chosen = null;

/** Searches with a picture that was dropped, pasted or chosen: the last one, if reading an earlier one takes longer. */
async function searchWith(file) {
  chosen = file;
  try {
    const picture = await keep(file);
    if (file === chosen) ask({ picture, text: state.text });
  } catch {
    toast(`${file.name} is no picture that this browser can read. It can still be added.`);
  }
}

const add = (files) => uploads.add(state.collection, files);
acceptPictures({ searchWith, add });

$("add").addEventListener("click", () => $("files").click());
$("files").addEventListener("change", () => (add([...$("files").files]), ($("files").value = "")));
$("pick").addEventListener("click", () => $("picture").click());
$("picture").addEventListener("change", () => ($("picture").files[0] && searchWith($("picture").files[0]), ($("picture").value = "")));
$("home").addEventListener("click", (event) => (event.preventDefault(), go({ ...HOME, collection: state.collection })));
$("key-later").addEventListener("click", () => $("key").close());
$("help-button").addEventListener("click", () => $("help").showModal());
$("collection").addEventListener("change", () => go({ ...HOME, collection: $("collection").value }));
document.addEventListener("keydown", (event) => {
  if (typing(event) || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "?" && !$("help").open) $("help").showModal();
  if (event.key === "/" && !document.querySelector("dialog[open]")) (event.preventDefault(), $("q").focus());
});
window.addEventListener("popstate", () => {
  leaving = false;
  state = read();
  render();
});

/** What the grid shows has come. */
function loaded() {
  viewer.around(results.hit(state.view));
  listCollections(); // if there was no key before
}

async function listCollections() {
  if (listed) return;
  listed = true;
  const found = await api.collections().catch(() => ((listed = false), [])); // the one collection stays
  const names = new Set(found.map((one) => one.name)).add(state.collection);
  $("collection").replaceChildren(...[...names].map((name) => new Option(name, name, false, name === state.collection)));
}

bar.show(state);
await whenReady();
ready = true;
render();
announce("Ready");
listCollections();
