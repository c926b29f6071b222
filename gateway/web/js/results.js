/** The grid: all pictures, or what a search has found, each find outlined. */

import * as api from "./api.js";
import { joined } from "./coco.js";
import { $, announce, count, h, icon, saveJson, toast, typing } from "./dom.js";
import { noMatch, nothing, skeletons, welcome } from "./empty_states.js";
import { month } from "./facts.js";
import { Picking } from "./picking.js";
import { base64, recall } from "./query_images.js";
import { byTime, makeTile, spotOf } from "./tile.js";
import { exampleWords, filterCount, isSearch, listing, searchBody } from "./url.js";

const IMAGES = 40; // of a page of all pictures
const LARGEST_PAGE = 1000; // of the API
const FLOW_PX = 900; // so far below the window is the next page asked for
const NEWS_MS = 1500; // between two looks for pictures that came
const FIRST_NEWS_MS = 100; // into an empty grid

export class Results {
  /** @param {{ask: Function, open: (imageId: string) => void, loaded: () => void, create: (collection: string) => void}} actions */
  constructor({ ask, open, loaded, create }) {
    this.loaded = loaded;
    this.create = create;
    this.ask = ask;
    this.open = open;
    this.tiles = []; // {item, element}
    this.gone = new Set(); // ids of pictures that were deleted here: later pages of a search may still name them
    this.token = "";
    this.picking = new Picking({ tiles: () => this.tiles, collection: () => this.state.collection, forget: (ids) => this.forget(...ids), coco: (ids) => this.coco(ids) });
    $("more").addEventListener("click", () => ((this.flows = true), this.load()));
    new IntersectionObserver(([more]) => more.isIntersecting && this.flows && this.load(), { rootMargin: `${FLOW_PX}px` }).observe($("more"));
    $("weaker").addEventListener("click", () => this.showWeaker());
    $("grid").addEventListener("keydown", (event) => this.key(event));
    $("grid").addEventListener("focusin", (event) => this.rove(event.target.closest("li")));
    $("export").addEventListener("click", () => this.export());
    document.addEventListener("threshold", (/** @type {CustomEvent} */ { detail }) => this.threshold(detail));
  }

  /**
   * Shows the pictures or hits of a state from the first page on.
   * @param {object} state What is asked; see url.js.
   * @param {{tiles?: number, weak?: boolean, y?: number}} [place] How far it was shown and scrolled before; see `position`.
   */
  show(state, place = {}) {
    this.state = state;
    this.back = place;
    this.flows = Boolean(place.tiles); // pages follow by themselves once somebody asked for more
    this.picking.end();
    this.tiles = [];
    this.gone.clear();
    this.token = "";
    this.total = null;
    this.weaker = []; // results below the model's cut-off, which wait to be asked for
    this.showsWeaker = Boolean(place.weak);
    this.judged = false;
    this.month = ""; // of the last picture, in the order of the days
    if ($("grid").contains(document.activeElement)) this.waitWithFocus();
    $("grid").replaceChildren();
    $("empty").hidden = true;
    $("notice").hidden = true;
    $("cut-off").hidden = true;
    if (isSearch(state)) $("order").hidden = true; // else it waits until there are pictures
    if (isSearch(state) || filterCount(state)) $("result-actions").hidden = false;
    this.title = $("title").textContent = $("title").title = title(state);
    $("subtitle").textContent = "";
    return this.load(true);
  }

  /** Grey tiles, before it is known what to show. */
  wait() {
    $("grid").replaceChildren(...skeletons());
  }

  reload() {
    return this.show(this.state);
  }

  /** How much is shown and where it is scrolled to, for when somebody comes back. */
  position() {
    return { tiles: this.flows ? this.tiles.length : 0, weak: this.showsWeaker, y: window.scrollY };
  }

  async load(first = false) {
    this.stop?.abort();
    const stop = (this.stop = new AbortController());
    const asked = document.activeElement === $("more");
    $("more").hidden = $("weaker").hidden = true;
    $("main").setAttribute("aria-busy", "true");
    const waiting = setTimeout(() => first && this.wait(), 150);
    stop.signal.addEventListener("abort", () => clearTimeout(waiting));
    try {
      const page = await this.page(stop.signal);
      if (stop.signal.aborted) return;
      clearTimeout(waiting);
      this.total = page.total;
      if (first) $("grid").replaceChildren();
      const from = this.tiles.length;
      for (const item of page.items) if (!this.gone.has(item.image_id)) this.place(item);
      if (first) $("cut-off").hidden = !page.truncated;
      this.token = page.token;
      this.offerMore();
      this.describe();
      this.loaded();
      if (first && this.back.y) window.scrollTo({ top: this.back.y });
      this.back = {};
      if (first || asked) this.rove(this.tiles[from]?.element, first ? this.waits && document.activeElement === $("main") : document.activeElement === document.body); // where the button was
      this.waits = false;
    } catch (error) {
      if (stop.signal.aborted) return;
      clearTimeout(waiting);
      if (first) {
        $("grid").replaceChildren();
        this.fail(error);
      } else {
        toast(error.message);
        this.flows = false; // what failed is tried again when somebody asks
        $("more").hidden = false;
      }
    } finally {
      if (this.stop === stop) $("main").removeAttribute("aria-busy");
    }
  }

  async page(signal) {
    const { state } = this;
    if (!isSearch(state)) {
      const found = await api.images(state.collection, this.token, signal, this.most(IMAGES), listing(state));
      return { items: found.images.map(asItem), token: found.next_page_token, total: found.total_count };
    }
    const body = this.body();
    const found = await api.search(state.collection, { ...body, page_size: this.most(body.page_size), page_token: this.token }, signal);
    this.judged = typeof found.cut_off === "number";
    return { items: found.hits, token: found.next_page_token, truncated: found.truncated?.some(Boolean) };
  }

  /** Results of a page: as many as usual, or all that were shown before. */
  most(usual) {
    return Math.max(usual, Math.min(this.back.tiles ?? 0, LARGEST_PAGE));
  }

  /** The body of the search. */
  body() {
    const { state } = this;
    const picture = state.picture && recall(state.picture);
    if (state.picture && !picture) throw new api.Problem(0, { title: "This picture is no longer available", detail: "A picture to search with lives in its tab only. Drop or paste it again." });
    return searchBody(state, picture && base64(picture));
  }

  /** A picture has come: it is shown before the others, and the rest stays where it is. */
  async news(imageId) {
    this.gone.delete(imageId); // it may have been deleted before
    this.stale = true;
    if (this.looking) return;
    this.looking = true;
    while (this.stale && !isSearch(this.state)) {
      await new Promise((resolve) => setTimeout(resolve, this.tiles.length ? NEWS_MS : FIRST_NEWS_MS)); // many come at once
      if ($("main").hasAttribute("aria-busy")) continue; // until the present page is there
      this.stale = false;
      await this.lookForNews();
    }
    this.looking = false;
  }

  async lookForNews() {
    const { state } = this;
    const found = await api.images(state.collection, "", undefined, IMAGES, filterCount(state) ? { filter: listing(state).filter } : {}).catch(() => null);
    if (!found || state !== this.state || $("main").hasAttribute("aria-busy")) return;
    const known = new Set(this.tiles.map(({ item }) => item.image_id));
    const fresh = found.images.filter((image) => !known.has(image.image_id) && !this.gone.has(image.image_id));
    if (known.size ? fresh.length === found.images.length : state.sort) return this.reload(); // more than a page; another order
    for (const image of fresh.reverse()) this.append(asItem(image), { first: true });
    if (!known.size) this.token = found.next_page_token;
    $("more").hidden = !this.token;
    this.total = found.total_count;
    if (fresh.length) this.describe();
    if (!known.size) this.rove(this.tiles[0]?.element);
  }

  /** Shows a result; those that are weak wait for a click, unless a lowest score was chosen. */
  place(item) {
    if (item.confident === false && !this.showsWeaker && this.state.min === null) this.weaker.push(item);
    else this.append(item);
  }

  /** What can still be shown: after confident results the weaker ones, then those of further pages. */
  offerMore() {
    const { weaker, token } = this;
    $("weaker").hidden = !weaker.length;
    $("weaker").textContent = weaker.length ? `${weaker.length}${token ? "+" : ""} weaker ${weaker.length === 1 && !token ? "match" : "matches"} · show` : "";
    $("more").hidden = !token || weaker.length > 0;
  }

  showWeaker() {
    const from = this.tiles.length;
    this.showsWeaker = true;
    for (const item of this.weaker.splice(0)) this.append(item);
    this.offerMore();
    this.describe();
    this.rove(this.tiles[from]?.element, true);
  }

  append(item, { first = false } = {}) {
    const element = makeTile(item, this.state, {
      open: () => (this.picking.on ? this.picking.toggle(item.image_id) : this.open((this.opened = item).image_id)),
      like: () => this.ask(example(spotOf(item))),
      pick: (event) => this.picking.toggle(item.image_id, { range: event.shiftKey }),
    });
    this.picking.mark(item, element);
    if (!first) this.head(item);
    this.tiles[first ? "unshift" : "push"]({ item, element });
    $("grid")[first ? "prepend" : "append"](element);
  }

  /** Above the first picture of a month stands its name, in the order of the days. */
  head({ image }) {
    if (isSearch(this.state) || !byTime(this.state.sort)) return;
    const name = month(image.attributes?.taken_at) || "Without a date";
    if (name !== this.month) $("grid").append(h("li.month", {}, h("h2", {}, name)));
    this.month = name;
  }

  /** What is there, in words; or why there is nothing. */
  describe() {
    const { tiles, state } = this;
    const searching = isSearch(state);
    const best = (tiles[0]?.item ?? this.weaker[0])?.score;
    const text = searching
      ? [count(tiles.length, state.group ? "picture" : "result") + (this.token && !this.weaker.length ? " so far" : ""), best !== undefined && `best score ${best.toFixed(2)}`, !this.judged && "ranked by similarity"].filter(Boolean).join(" · ")
      : this.total ? count(this.total, "picture") : "";
    $("subtitle").textContent = tiles.length ? text : "";
    if (searching && best !== undefined) $("min").max = Math.max(0.1, Math.ceil(best * 100) / 100, state.min ?? 0);
    $("export").disabled = !searching || !tiles.length;
    $("select").hidden = !tiles.length;
    $("order").hidden = searching || !tiles.length;
    $("result-actions").hidden = !searching && !tiles.length && !filterCount(state);
    $("empty").hidden = tiles.length > 0;
    const none = this.weaker.length ? noMatch(this.title) : nothing(state);
    const asked = searching || filterCount(state) > 0;
    if (!tiles.length) $("empty").replaceChildren(...(asked ? none : welcome()));
    announce(tiles.length ? text : asked ? none[0].textContent : "No pictures yet");
  }

  async fail(error) {
    const notice = $("notice");
    const { state } = this;
    if (error.status === 404 && (await api.isMissing(state.collection))) return state === this.state && this.offer(state.collection);
    if (state !== this.state) return;
    notice.className = "notice error";
    notice.hidden = false;
    notice.replaceChildren(h("div", {}, h("h2", {}, error.title ?? "Something went wrong"), h("p", {}, error.message), error.requestId && h("p.muted", {}, `Request ${error.requestId}`)),
      h("button.secondary", { type: "button", click: () => this.reload() }, icon("retry"), "Try again"));
  }

  /** There is no such collection: it can be made. */
  offer(collection) {
    const notice = $("notice");
    notice.className = "notice missing";
    notice.hidden = false;
    notice.replaceChildren(h("div", {}, h("h2", {}, `There is no collection “${collection}”`), h("p", {}, "Create it, or choose another one above.")),
      h("button.primary", { type: "button", click: () => this.create(collection) }, icon("plus"), "Create it"));
  }

  /** Hides what scores less, while the slider moves. */
  threshold(min) {
    let left = 0;
    for (const { item, element } of this.tiles) {
      element.hidden = min !== null && item.score !== null && item.score < min;
      left += element.hidden ? 0 : 1;
    }
    $("subtitle").textContent = count(left, this.state.group ? "picture" : "result") + (min === null ? "" : ` · score ${min.toFixed(2)} or more`);
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

  /** Takes deleted pictures out; what stood after the first takes its place. */
  forget(...imageIds) {
    for (const id of imageIds) this.gone.add(id);
    const isGone = ({ item }) => this.gone.has(item.image_id);
    const at = Math.max(0, this.tiles.findIndex(isGone));
    for (const tile of this.tiles.filter(isGone)) tile.element.remove();
    this.tiles = this.tiles.filter((tile) => !isGone(tile));
    if (this.total) this.total -= imageIds.length;
    this.describe();
    this.rove((this.tiles[at] ?? this.tiles.at(-1))?.element);
  }

  /** Takes the focus when what had it is gone. */
  focus() {
    const here = document.activeElement;
    if (here !== document.body && !here.closest("dialog")) return;
    const tile = $("grid").querySelector('.tile[tabindex="0"]');
    if (tile) tile.focus();
    else this.waitWithFocus();
  }

  /** The first tile that comes takes the focus, unless it has gone elsewhere by then. */
  waitWithFocus() {
    this.waits = true;
    $("main").focus({ preventScroll: true });
  }

  /** As many results as the grid shows. */
  async export() {
    $("export").disabled = true;
    try {
      const document = await api.cocoOfSearch(this.state.collection, { ...this.body(), include: this.showsWeaker ? ["weak"] : [], page_size: Math.min(this.tiles.length, LARGEST_PAGE) });
      saveJson(document, "results.coco.json");
      toast(`${count(document.annotations.length, "result")} saved as COCO${this.token || this.weaker.length ? ", as far as they are shown" : ""}.`);
    } catch (error) {
      toast(error.message);
    } finally {
      $("export").disabled = false;
    }
  }

  /** Pictures as a COCO document: what the search has found in them, or all that is in them. */
  async coco(ids) {
    const { collection } = this.state;
    if (!isSearch(this.state)) return joined(ids, (id) => api.cocoOfThings(collection, id));
    const body = this.body();
    const filter = { ...body.filter, image_ids: ids };
    return api.cocoOfSearch(collection, { ...body, filter, include: this.showsWeaker ? ["weak"] : [], page_size: LARGEST_PAGE });
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
    const key = event.key.toLowerCase();
    if (here < 0 || typing(event) || event.altKey) return;
    if ((event.ctrlKey || event.metaKey) && key === "a") return void (event.preventDefault(), this.picking.all());
    if (event.ctrlKey || event.metaKey) return;
    const { item } = visible[here];
    if (key === "m") return void this.ask(example(spotOf(item)));
    if (key === "x") return void this.picking.toggle(item.image_id, { range: event.shiftKey });
    if (key === "escape") return this.picking.end();
    if (key === "delete") return void this.picking.delete();
    const there = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: visible.length - 1, ArrowDown: below(visible, here, 1), ArrowUp: below(visible, here, -1) }[event.key];
    if (there === undefined) return;
    event.preventDefault();
    this.rove(visible[there]?.element, true);
  }
}

/** A stored picture as the grid shows it. */
const asItem = (image) => ({ image_id: image.image_id, image, level: "image", score: null });

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
  const example = exampleWords(state);
  if (state.text) return `“${state.text}”${example && ` and ${example}`}`;
  return example ? `Like ${example}` : "Your pictures";
}
