/** Puts the page together: the address is the state, everything else follows it. */

import { CollectionMap } from "./collection_map.js";
import { Collections } from "./collections.js";
import { $, announce, toast, typing } from "./dom.js";
import { acceptPictures, picturesOfFolder } from "./drop.js";
import { keep } from "./query_images.js";
import { whenReady } from "./readiness.js";
import { Results } from "./results.js";
import { showRights } from "./rights.js";
import { SearchBar } from "./searchbar.js";
import { Uploads } from "./uploads.js";
import { HOME, isSearch, NO_MARKS, read, write } from "./url.js";
import { Viewer } from "./viewer.js";
import { hintAtWeights } from "./weights_hint.js";

const REST_MS = 250;

let state = read();
let shown = null;
let ready = false;
let leaving = false; // going back in the history takes effect later
let resting; // timer: scrolling has come to rest

/**
 * Changes the state: a new entry of the history unless `replace`; `anew` also loads what is shown already. An entry
 * that only opens a picture says so.
 */
function go(changes, { replace = false, anew = false } = {}) {
  const next = { ...state, ...changes };
  replace ||= write(next) === write(state); // the same again is no new entry
  const opens = Boolean(next.view) && (replace ? Boolean(history.state?.opens) : !state.view);
  if (!replace) remember();
  if (anew) shown = null;
  const same = keyOf(next) === shown; // the grid stays, and so does where it is
  state = next;
  history[replace ? "replaceState" : "pushState"]({ ...(same && results.position()), opens }, "", write(state));
  render();
}

/** Notes in the present entry of the history how far the grid is shown and scrolled, for Back and reload. */
function remember() {
  clearTimeout(resting);
  if (ready && keyOf(state) === shown) history.replaceState({ ...history.state, ...results.position() }, "");
}

/** What the grid shows depends on; the open picture does not matter. */
function keyOf({ view, marks, map: _, ...query }) {
  return JSON.stringify(query);
}

/** Closes the open picture: back to what it was opened from, so that Back does not open it again. */
function close() {
  if (leaving) return;
  leaving = Boolean(history.state?.opens);
  if (leaving) history.back();
  else go({ view: "", marks: NO_MARKS }, { replace: true });
}

/** Takes note of what is pointed at in the open picture, so that Back and reload bring it again. */
function marked(marks) {
  state = { ...state, marks };
  if (state.view) history.replaceState(history.state, "", write(state));
}

/** A new search, or the same once more: what was asked before is forgotten, filters stay. */
function ask(query) {
  const { text, picture, region, image, points, box } = HOME;
  const calm = { text, picture, region, image, points, box, view: "", marks: NO_MARKS, map: false, min: null, unlike: HOME.unlike };
  go({ ...calm, ...query }, { anew: true });
  window.scrollTo({ top: 0 });
}

/** Goes to a collection. Words and one's own picture are looked for there too; what is stored elsewhere is not. */
function enter(collection) {
  const pointed = state.picture ? {} : { points: [], box: null };
  go({ collection, region: "", image: "", unlike: HOME.unlike, view: "", marks: NO_MARKS, ...pointed }, { anew: true }); // it may just have been made
}

const collections = new Collections({ enter });
const bar = new SearchBar({ ask, go });
const results = new Results({ ask, open: (view) => go({ view, marks: NO_MARKS }), loaded, create: (name) => collections.create(name) });
const map = new CollectionMap({ open: (view) => go({ view, marks: NO_MARKS }), toggle: () => go({ map: !state.map }) });
const viewer = new Viewer({
  ask,
  unlike: (region) => go({ view: "", marks: NO_MARKS, unlike: [...new Set([...state.unlike, region])] }, { replace: true }),
  open: (view) => go({ view, marks: NO_MARKS }, { replace: true }),
  marked, close,
  closed: () => (map.shown ? map.focus() : results.focus()),
  neighbour: (id, step) => results.neighbour(id, step),
  deleted: (id) => {
    results.forget(id);
    map.forget(id);
  },
});
const uploads = new Uploads({
  changed: (collection, id) => {
    hintAtWeights();
    if (ready && collection === state.collection) (results.news(id), map.reload());
  },
});

function render() {
  const key = keyOf(state);
  bar.show(state);
  collections.show(state.collection);
  if (!ready) return; // the notice says what the page waits for
  if (key !== shown) {
    shown = key;
    results.show(state, history.state ?? {});
  }
  map.show(state.collection, state.map && !isSearch(state), !isSearch(state));
  viewer.show(state, map.hit(state.view) ?? results.hit(state.view));
  document.title = state.text ? `${state.text} · Region Search` : "Region Search";
}

let chosen = null;

/** Searches with a picture that was dropped, pasted or chosen: the last one, if reading an earlier one takes longer. */
async function searchWith(file) {
  chosen = file;
  try {
    const picture = await keep(file);
    if (file !== chosen) return;
    ask({ picture, text: state.text });
    hintAtWeights();
  } catch {
    toast(`This browser cannot read ${file.name} as a picture.`);
  }
}

const add = (files) => uploads.add(state.collection, files);
document.addEventListener("restore", (/** @type {CustomEvent} */ { detail: { collection, files } }) => uploads.add(collection, files));
acceptPictures({ searchWith, add });

$("add").addEventListener("click", () => $("files").click());
$("files").addEventListener("change", () => (add([...$("files").files]), ($("files").value = "")));
$("add-folder").addEventListener("click", () => $("folder").click());
$("folder").addEventListener("change", () => {
  const files = picturesOfFolder($("folder").files);
  if (files.length) add(files);
  $("folder").value = "";
});
$("pick").addEventListener("click", () => $("picture").click());
$("picture").addEventListener("change", () => ($("picture").files[0] && searchWith($("picture").files[0]), ($("picture").value = "")));
$("home").addEventListener("click", (event) => (event.preventDefault(), go({ ...HOME, collection: state.collection })));
$("key-later").addEventListener("click", () => $("key").close());
$("help-button").addEventListener("click", () => $("help").showModal());
document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key === "z" && !typing(event)) $("toast").querySelector("button")?.click(); // "Undo"
  if (typing(event) || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "?" && !$("help").open) $("help").showModal();
  if (event.key === "/" && !document.querySelector("dialog[open]")) (event.preventDefault(), $("q").focus());
});
history.scrollRestoration = "manual"; // the browser's own comes before the pictures do
window.addEventListener("scroll", () => (clearTimeout(resting), (resting = setTimeout(remember, REST_MS))), { passive: true });
window.addEventListener("pagehide", remember);
window.addEventListener("popstate", () => {
  clearTimeout(resting); // what was scrolled belongs to the entry that was left
  leaving = false;
  state = read();
  render();
});

/** What the grid shows has come. */
function loaded() {
  viewer.around(map.hit(state.view) ?? results.hit(state.view));
  collections.list(); // if there was no key before
  showRights();
}

bar.show(state);
collections.show(state.collection);
results.wait();
await whenReady();
ready = true;
render();
announce("Ready");
collections.list();
