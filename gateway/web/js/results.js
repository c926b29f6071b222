/** The grid: all pictures, or what a search has found, each find outlined. */

import * as api from "./api.js";
import { $, announce, count, h, icon, toast, saveJson, typing } from "./dom.js";
import { outline } from "./mask.js";
import { draw, overlay } from "./overlay.js";
import { base64, recall } from "./query_images.js";
import { filterCount, isSearch, phrases, searchBody } from "./url.js";

const MOST_EXPORTED = 1000; // finds of one answer

export class Results {
  /** @param {{ask: Function, open: (imageId: string) => void, loaded: () => void}} actions */
  constructor({ ask, open, loaded }) {
    this.loaded = loaded;
    this.ask = ask;
    this.open = open;
    this.tiles = []; // {item, element}
    this.gone = new Set(); // ids of pictures that were deleted here: later pages of a search may still name them
    this.token = "";
    $("more").addEventListener("click", () => this.load());
    $("grid").addEventListener("keydown", (event) => this.key(event));
    $("grid").addEventListener("focusin", (event) => this.rove(event.target.closest("li")));
    $("export").addEventListener("click", () => this.export());
    document.addEventListener("threshold", (/** @type {CustomEvent} */ { detail }) => this.threshold(detail));
  }

  /** Shows the pictures or hits of a state from the first page on. */
  show(state) {
    this.state = state;
    this.tiles = [];
    this.gone.clear();
    this.token = "";
    this.total = null;
    $("grid").replaceChildren();
    $("empty").hidden = true;
    $("notice").hidden = true;
    $("cut-off").hidden = true;
    $("title").textContent = title(state);
    $("subtitle").textContent = "";
    return this.load(true);
  }

  reload() {
    return this.show(this.state);
  }

  async load(first = false) {
    this.stop?.abort();
    const stop = (this.stop = new AbortController());
    $("more").hidden = true;
    $("main").setAttribute("aria-busy", "true");
    const waiting = setTimeout(() => first && $("grid").replaceChildren(...skeletons()), 150);
    stop.signal.addEventListener("abort", () => clearTimeout(waiting));
    try {
      const page = await this.page(stop.signal);
      if (stop.signal.aborted) return;
      clearTimeout(waiting);
      this.total = page.total;
      if (first) $("grid").replaceChildren();
      const from = this.tiles.length;
      for (const item of page.items) if (!this.gone.has(item.image_id)) this.append(item);
      if (first) $("cut-off").hidden = !page.truncated;
      this.token = page.token;
      $("more").hidden = !this.token;
      this.describe();
      this.loaded();
      this.rove(this.tiles[from]?.element, !first && document.activeElement === document.body); // where the button was
    } catch (error) {
      if (stop.signal.aborted) return;
      clearTimeout(waiting);
      if (first) {
        $("grid").replaceChildren();
        this.fail(error);
      } else {
        toast(error.message);
        $("more").hidden = false;
      }
    } finally {
      if (this.stop === stop) $("main").removeAttribute("aria-busy");
    }
  }

  async page(signal) {
    const { state } = this;
    if (!isSearch(state)) {
      const found = await api.images(state.collection, this.token, signal);
      const items = found.images.map((image) => ({ image_id: image.image_id, image, level: "image", score: null }));
      return { items, token: found.next_page_token, total: found.total_count };
    }
    const found = await api.search(state.collection, { ...this.body(), page_token: this.token }, signal);
    return { items: found.hits, token: found.next_page_token, truncated: found.truncated?.some(Boolean) };
  }

  /** The body of the search. */
  body() {
    const { state } = this;
    const picture = state.picture && recall(state.picture);
    if (state.picture && !picture) throw new api.Problem(0, { title: "The picture is gone", detail: "A picture to search with lives in its tab only. Drop or paste it again." });
    return searchBody(state, picture && base64(picture));
  }

  append(item) {
    const { image } = item;
    const spot = item.best_region ?? item;
    const isFind = item.score !== null && spot.level !== "image";
    const settled = () => picture.classList.add("settled"); // the outline waits for its picture
    const picture = h("img", { alt: "", loading: "lazy", draggable: false, load: settled, error: settled });
    api.show(picture, api.thumbnailUrl(this.state.collection, item.image_id)).catch(() => picture.classList.add("blank", "settled"));
    const lines = overlay();
    if (isFind) draw(lines, image, [{ path: outline(spot, { tidy: true }), hue: spot.text_index ?? 0 }], true);
    const several = phrases(this.state.text).length > 1;
    const name = image.name || "Untitled";
    const words = [isFind ? `${item.label ?? "Found"} in ${name}` : name, item.score !== null && `score ${item.score.toFixed(2)}`].filter(Boolean).join(", ");
    const button = h("button.tile", { type: "button", "aria-label": words, tabIndex: -1, click: () => this.open((this.opened = item).image_id) }, picture, isFind && lines);
    const caption = h("div.caption", {},
      h("span.name", { title: name }, several && item.label ? h("b", { className: `hue-${(spot.text_index ?? 0) % 6}` }, item.label) : name),
      item.score !== null ? h("span.score", { title: "Cosine of query and thing" }, item.score.toFixed(2)) : h("span.score", {}, count(image.region_count ?? 0, "thing")),
    );
    const like = h("button.like", { type: "button", tabIndex: -1, title: "More like this", "aria-label": `More like this: ${name}`, click: () => this.ask(example(spot)) }, icon("similar"));
    const element = h("li", {}, button, like, caption);
    const ratio = Math.min(2.6, Math.max(0.62, image.width / image.height));
    element.style.setProperty("--ratio", ratio.toFixed(3));
    this.tiles.push({ item, element });
    $("grid").append(element);
  }

  /** What is there, in words; or why there is nothing. */
  describe() {
    const { tiles, state } = this;
    const searching = isSearch(state);
    const best = tiles[0]?.item.score;
    const text = searching
      ? [count(tiles.length, state.group ? "picture" : "find") + (this.token ? " so far" : ""), best !== undefined && `best score ${best.toFixed(2)}`].filter(Boolean).join(" · ")
      : this.total ? count(this.total, "picture") : "";
    $("subtitle").textContent = tiles.length ? text : "";
    if (searching && best !== undefined) $("min").max = Math.max(0.1, Math.ceil(best * 100) / 100, state.min ?? 0);
    $("export").disabled = !searching || !tiles.length;
    $("empty").hidden = tiles.length > 0;
    if (!tiles.length) $("empty").replaceChildren(...(searching ? nothing(state) : welcome()));
    announce(tiles.length ? text : searching ? "Nothing found" : "No pictures yet");
  }

  fail(error) {
    const notice = $("notice");
    notice.className = "notice error";
    notice.hidden = false;
    notice.replaceChildren(h("div", {}, h("h2", {}, error.title ?? "Something went wrong"), h("p", {}, error.message), error.requestId && h("p.muted", {}, `Request ${error.requestId}`)),
      h("button.secondary", { type: "button", click: () => this.reload() }, icon("retry"), "Try again"));
  }

  /** Hides what scores less, while the slider moves. */
  threshold(min) {
    let left = 0;
    for (const { item, element } of this.tiles) {
      element.hidden = min !== null && item.score !== null && item.score < min;
      left += element.hidden ? 0 : 1;
    }
    $("subtitle").textContent = count(left, this.state.group ? "picture" : "find") + (min === null ? "" : ` · score ${min.toFixed(2)} or more`);
  }

  /** The hit that shows this picture; of several the one that was chosen, or else the best. */
  hit(imageId) {
    const hits = this.tiles.map(({ item }) => item).filter((item) => item.image_id === imageId);
    return hits.includes(this.opened) ? this.opened : hits[0] ?? null;
  }

  /** The picture before or after one in the grid. */
  neighbour(imageId, step) {
    const ids = [...new Set(this.tiles.map(({ item }) => item.image_id))];
    return ids[ids.indexOf(imageId) + step] ?? null;
  }

  /** Takes a deleted picture out; what stood after it takes its place. */
  forget(imageId) {
    this.gone.add(imageId);
    const at = Math.max(0, this.tiles.findIndex(({ item }) => item.image_id === imageId));
    for (const { item, element } of this.tiles) if (item.image_id === imageId) element.remove();
    this.tiles = this.tiles.filter(({ item }) => item.image_id !== imageId);
    if (this.total) this.total -= 1;
    this.describe();
    this.rove((this.tiles[at] ?? this.tiles.at(-1))?.element);
  }

  /** Takes the focus when what had it is gone. */
  focus() {
    const here = document.activeElement;
    if (here === document.body || here.closest("dialog")) $("grid").querySelector('.tile[tabindex="0"]')?.focus();
  }

  /** As many finds as the grid shows. */
  async export() {
    $("export").disabled = true;
    try {
      const document = await api.cocoOfSearch(this.state.collection, { ...this.body(), page_size: Math.min(this.tiles.length, MOST_EXPORTED) });
      saveJson(document, "results.coco.json");
      toast(`${count(document.annotations.length, "find")} saved as COCO.`);
    } catch (error) {
      toast(error.message);
    } finally {
      $("export").disabled = false;
    }
  }

  /** One tile is in the order of Tab; its buttons follow it. */
  rove(element, focus = false) {
    if (!element) return;
    for (const tile of this.tiles) for (const button of tile.element.querySelectorAll("button")) button.tabIndex = tile.element === element ? 0 : -1;
    if (focus) element.querySelector(".tile").focus();
  }

  key(event) {
    const visible = this.tiles.filter(({ element }) => !element.hidden);
    const here = visible.findIndex(({ element }) => element.contains(event.target));
    if (here < 0 || typing(event) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "m" || event.key === "M") return void this.ask(example(visible[here].item.best_region ?? visible[here].item));
    const there = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: visible.length - 1, ArrowDown: below(visible, here, 1), ArrowUp: below(visible, here, -1) }[event.key];
    if (there === undefined) return;
    event.preventDefault();
    this.rove(visible[there]?.element, true);
  }
}

/** The query for more of the same. */
const example = (spot) => (spot.region_id ? { region: spot.region_id } : { image: spot.image_id });

/** The tile in the next row (or the one before) that is nearest. */
function below(visible, here, direction) {
  const middle = ({ element }) => element.offsetLeft + element.offsetWidth / 2;
  const rows = visible.map(({ element }) => element.offsetTop);
  const wanted = direction > 0 ? Math.min(...rows.filter((top) => top > rows[here])) : Math.max(...rows.filter((top) => top < rows[here]));
  const candidates = rows.flatMap((top, i) => (top === wanted ? [i] : []));
  return candidates.sort((a, b) => Math.abs(middle(visible[a]) - middle(visible[here])) - Math.abs(middle(visible[b]) - middle(visible[here])))[0] ?? here;
}

function title(state) {
  if (state.text) return `“${state.text}”${state.picture ? " and a picture" : state.region || state.image ? " and an example" : ""}`;
  if (state.picture) return state.points.length || state.box ? "Like the thing in your picture" : "Like your picture";
  if (state.region || state.image) return "More like this";
  return "Your pictures";
}

const skeletons = () => [1.3, 0.8, 1.5, 1, 0.7, 1.4, 1.1, 0.9].map((ratio) => {
  const element = h("li.skeleton", { "aria-hidden": "true" }, h("div.tile"));
  element.style.setProperty("--ratio", String(ratio));
  return element;
});

const nothing = (state) => [
  h("h2", {}, "Nothing found"),
  h("p", {}, filterCount(state) ? "No thing passes all filters. Loosen the score, the size or what is not meant." : "There is nothing in this collection to compare with. Add pictures first."),
  filterCount(state) > 0 && h("button.secondary", { type: "button", click: () => $("filters").reset() }, "Clear the filters"),
].filter(Boolean);

const welcome = () => [
  h("div.welcome-art", { "aria-hidden": "true" }, h("i"), h("i"), h("i")),
  h("h2", {}, "Find any object in any picture"),
  h("p", {}, "Drop pictures or whole folders anywhere on this page. Each thing in them becomes something you can find."),
  h("button.primary", { type: "button", click: () => $("add").click() }, icon("plus"), "Add pictures"),
  h("ul.ways", {},
    h("li", {}, h("b", {}, "By words"), "“red mug”, “dog with a ball”"),
    h("li", {}, h("b", {}, "By example"), "drop or paste a picture into the search"),
    h("li", {}, h("b", {}, "By pointing"), "open a picture and click the thing")),
];
