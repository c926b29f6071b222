/** One picture, large: its things, pointing at them, searching inside, and what can be done with a find. */

import * as api from "./api.js";
import { confirmed } from "./confirm.js";
import { cutOut } from "./crop.js";
import { $, announce, count, save, saveFrom, stem, toast, typing } from "./dom.js";
import { Facts } from "./facts.js";
import { searchInside } from "./inside.js";
import { outline } from "./mask.js";
import { OwnPicture, StoredPicture } from "./image_source.js";
import { keepCutOut } from "./query_images.js";
import { describe } from "./selection.js";
import { Stage } from "./stage.js";
import { Tags } from "./tags.js";
import { Things } from "./region_list.js";
import { keepFiles, outlook, sayDeleted } from "./undo.js";
import { isSearch, MINE, NO_MARKS, phrases } from "./url.js";

const WANT_FACTS = ["viewer-coco", "viewer-original", "viewer-delete"]; // buttons that wait until it is known what the picture shows

export class Viewer {
  image = null;
  things = [];

  /** @param {object} actions ask, unlike, open, marked, close, closed, neighbour, deleted; see main.js. */
  constructor(actions) {
    this.actions = actions;
    this.dialog = $("viewer");
    this.picture = null;
    this.stage = new Stage({
      hover: (x, y) => this.smallestAt(x, y),
      prompt: (prompt) => this.pointed(prompt),
    });
    this.list = new Things({
      choose: (thing) => this.choose(thing),
      point: (thing) => this.stage.show(thing ? [...this.shapes(), { path: thing.path, kind: "hover" }] : this.shapes()),
    });
    this.tags = new Tags((change) => this.change(change));
    this.facts = new Facts((change, picture) => this.change(change, picture));
    this.dialog.addEventListener("cancel", (event) => (event.preventDefault(), this.escape()));
    this.dialog.addEventListener("close", () => this.picture && actions.close()); // the browser may insist on Escape
    this.dialog.addEventListener("keydown", (event) => this.key(event));
    $("viewer-close").addEventListener("click", () => actions.close());
    $("viewer-prev").addEventListener("click", () => this.step(-1));
    $("viewer-next").addEventListener("click", () => this.step(1));
    $("viewer-delete").addEventListener("click", () => this.delete());
    $("viewer-coco").addEventListener("click", () => this.image && saveFrom(api.cocoOfThings(this.picture.collection, this.picture.id), `${stem(this.image.name)}.coco.json`));
    $("viewer-original").addEventListener("click", () => this.saveOriginal());
    $("all-things").addEventListener("click", () => this.showAll(!this.showsAll));
    $("within").addEventListener("submit", (event) => (event.preventDefault(), this.searchWithin()));
  }

  /** Opens, changes or closes as the address says. `hit` is what the grid shows of the picture. */
  show(state, hit) {
    const { view, collection } = state;
    this.state = state;
    $("confirm").close(); // it asks about what was open
    const picture = view === MINE ? state.picture && new OwnPicture(state.picture) : view && new StoredPicture(collection, view);
    if (!picture) {
      this.picture = null;
      this.stop?.abort();
      this.segmenting?.abort();
      if (this.dialog.open) {
        this.dialog.close();
        this.actions.closed();
      }
    } else if (picture.id !== this.picture?.id || collection !== this.picture.collection && picture.stored) {
      this.picture = picture;
      this.load(hit);
    }
  }

  async load(hit) {
    this.stop?.abort();
    this.segmenting?.abort();
    const stop = (this.stop = new AbortController());
    const { picture } = this;
    Object.assign(this, { hit, image: null, things: [], selected: null, hits: null, choices: null });
    $("viewer-name").textContent = hit?.image.name || "Picture";
    $("viewer-facts").textContent = "";
    $("within-text").value = "";
    $("stage-image").removeAttribute("src");
    for (const part of this.dialog.querySelectorAll("[data-shown]")) part.hidden = false;
    for (const part of this.dialog.querySelectorAll("[data-stored]")) part.hidden = !picture.stored;
    this.stage.reset(hit?.image ?? { width: 1, height: 1 });
    this.message("Loading…");
    for (const id of WANT_FACTS) $(id).disabled = true;
    this.refresh();
    if (!this.dialog.open) {
      this.dialog.showModal();
      this.stage.element.focus();
    }
    this.around(hit);
    try {
      const found = await picture.open($("stage-image"), stop.signal);
      if (stop.signal.aborted) return;
      Object.assign(this, found);
      this.stage.reset(this.image);
      this.stage.show(this.shapes());
      this.message(null);
      this.introduce();
      this.refresh();
      const { marks, points, box } = this.state;
      if (marks.points.length || marks.box) this.repeat(marks);
      else if (this.hit) this.selectHit();
      else if (!picture.stored && (points.length || box)) this.repeat({ points, box });
    } catch (error) {
      if (error.name !== "AbortError" && this.picture === picture) this.fail(error);
    }
  }

  /** Says why there is no picture; nothing that would need one is offered. */
  fail(error) {
    $("stage-image").removeAttribute("src");
    for (const part of this.dialog.querySelectorAll("[data-stored], [data-shown]")) part.hidden = true;
    this.message(error.status === 404 ? "This picture is not in the collection. It may have been deleted." : error.message);
  }

  /** Takes note of what the grid shows around the picture; it may come later than the picture itself. */
  around(hit) {
    if (!this.picture) return;
    for (const [id, step] of [["viewer-prev", -1], ["viewer-next", 1]]) {
      const last = !this.actions.neighbour(this.picture.id, step);
      if (last && document.activeElement === $(id)) this.stage.element.focus(); // a disabled button would lose it
      $(id).disabled = last;
    }
    if (!hit || this.hit) return;
    this.hit = hit;
    if (this.image && !this.selected && !this.hits) this.selectHit();
  }

  /** Selects what the search has found in the picture. */
  selectHit() {
    const find = this.hit.best_region ?? this.hit;
    const thing = this.things.find((one) => one.region_id === find.region_id);
    if (thing) this.select(thing, find);
  }

  /** Says what is shown, to everybody. */
  introduce() {
    for (const id of WANT_FACTS) $(id).disabled = false;
    const { name, width, height } = this.image;
    const facts = [`${width} × ${height}`, this.picture.stored && count(this.things.length, "thing")].filter(Boolean);
    $("viewer-name").textContent = name || "Untitled";
    $("viewer-facts").textContent = facts.join(" · ");
    this.tags.show(this.image);
    this.facts.show(this.image, this.picture);
    const label = [name || "Picture", `${width} by ${height} pixels`, ...facts.slice(1)].join(", ");
    $("stage").setAttribute("aria-label", label);
    announce(label);
  }

  message(text) {
    $("stage-message").hidden = !text;
    $("stage-message").textContent = text ?? "";
  }

  /** The smallest thing that holds this point. */
  smallestAt(x, y) {
    let best = null;
    for (const thing of this.things) {
      if (!(thing.shape ? thing.shape.contains(x, y) : inBox(thing.box, x, y))) continue;
      if (!best || thing.area < best.area) best = thing;
    }
    return best;
  }

  select(thing, hit = null) {
    this.segmenting?.abort(); // a mask that is still to come is not what is wanted any more
    this.hits = null;
    this.unmark();
    this.selected = { ...thing, kind: "region", score: hit?.score ?? thing.score ?? null, label: hit?.label ?? thing.label ?? null };
    this.stage.show(this.shapes());
    this.tell();
  }

  deselect() {
    this.segmenting?.abort();
    Object.assign(this, { selected: null, hits: null });
    this.unmark();
    this.stage.show(this.shapes());
    if (this.listed === this.things) this.tell(); // and whoever is in the list stays there
    else this.refresh();
  }

  /** Takes points and box away. */
  unmark() {
    this.stage.set([], null);
    this.actions.marked(NO_MARKS);
  }

  /** Points or a box: what is known there at once, then the model's own mask. */
  async pointed({ points, box }) {
    this.segmenting?.abort();
    if (!this.image) return;
    if (!points.length && !box) return this.deselect();
    this.actions.marked({ points, box });
    const stop = (this.segmenting = new AbortController());
    const known = this.choicesFor(points, box);
    const choices = (this.choices = known && { ...known, chosen: box ? known.masks.findIndex((mask) => same(mask.box, box)) : known.best });
    const guess = choices?.masks[choices.chosen] ?? (points.length === 1 && points[0].label && !box ? this.smallestAt(points[0].x, points[0].y) : null);
    this.selected = { kind: "prompt", points, drawn: box, path: guess?.path ?? this.selected?.path ?? null, pending: true, choices };
    this.hits = null;
    if (guess) this.stage.show(this.shapes());
    this.tell();
    try {
      const multimask = points.length === 1 && !box; // ambiguous: the best of three, as in a search for it
      const asked = { ...this.picture.reference, points, ...(box ? { box } : {}), multimask };
      const found = await api.segment(asked, stop.signal);
      const candidates = found.results[0]?.candidates.filter((one) => one.area > 0) ?? [];
      const [best] = candidates;
      if (!best) throw new api.Problem(0, { detail: "Nothing stands out there. Try another point." });
      if (multimask) this.choices = choicesOf(candidates, points[0]);
      this.selected = { ...best, kind: "prompt", points, drawn: box, asked, path: outline(best), choices: this.choices };
      this.stage.show(this.shapes());
      announce(`Outlined, ${this.share(best.area)} of the picture`);
    } catch (error) {
      if (stop.signal.aborted) return;
      this.selected = { ...this.selected, pending: false, error: error.message };
    }
    this.tell();
  }

  /** The masks to choose among, if this still points at one of them. */
  choicesFor(points, box) {
    const { choices } = this;
    const here = choices && points.length === 1 && same(points[0], choices.at);
    return here && (!box || choices.masks.some((mask) => same(mask.box, box))) ? choices : null;
  }

  /** Chooses another mask of an ambiguous click. A box around it says which one to the model, and to a search. */
  chooseMask(index) {
    const { masks, best } = this.choices;
    this.stage.change({ box: index === best ? null : masks[index].box });
  }

  /** Points again at what the address points at. */
  repeat({ points, box }) {
    this.stage.set(points, box);
    this.pointed({ points, box });
  }

  async searchWithin() {
    const texts = phrases($("within-text").value);
    if (!texts.length || !this.image) return;
    const button = $("within").querySelector("button");
    button.disabled = true;
    try {
      const found = await searchInside(this.picture, texts, this.stop.signal);
      this.segmenting?.abort();
      this.unmark();
      this.selected = null;
      const stored = new Map(this.things.map((thing) => [thing.region_id, thing]));
      this.hits = found.regions.map((hit) => ({ ...stored.get(hit.region_id), ...hit, path: stored.get(hit.region_id)?.path ?? outline(hit) }));
      this.stage.show(this.shapes());
      this.refresh();
      if (found.truncated?.some(Boolean)) toast("A phrase is longer than the model reads; its end was ignored.");
      const best = this.hits.filter((hit) => hit.is_hit);
      if (!best.length) $("regions-title").textContent = `Nothing found like ${texts.map((text) => `“${text}”`).join(" or ")}`;
      announce(best.length ? `Best: ${best.map((hit) => `${hit.label}, score ${hit.score.toFixed(2)}`).join("; ")}` : "Nothing found");
    } catch (error) {
      if (error.name !== "AbortError") toast(error.message);
    } finally {
      button.disabled = false;
    }
  }

  /** The list of things (in their own order, or by score after a search inside) and what is selected. */
  refresh() {
    this.listed = this.hits ?? this.things;
    this.list.show(this.listed, { scored: Boolean(this.hits), image: this.image, share: (area) => this.share(area) });
    this.tell();
  }

  /** What is selected and what can be done with it. */
  tell() {
    this.list.mark(this.selected?.region_id);
    const lessLikeThis = isSearch(this.state) ? this.actions.unlike : null;
    const { picture, selected } = this;
    const coco = () => (selected.region_id ? api.cocoOfThings(picture.collection, picture.id, selected.region_id) : api.cocoOfPrompt(selected.asked));
    describe(selected, { image: this.image, stored: picture.stored, coco, share: (area) => this.share(area) }, { moreLikeThis: () => this.moreLikeThis(), lessLikeThis, chooseMask: (index) => this.chooseMask(index) });
  }

  choose(thing) {
    const { hits } = this;
    this.select(thing);
    this.hits = hits;
    announce(`${thing.label ?? `Thing ${thing.number}`} selected`);
  }

  /** Outlines every thing, as long as nothing is selected. */
  showAll(all) {
    this.showsAll = all;
    $("all-things").setAttribute("aria-pressed", String(all));
    if (all && this.selected) this.stage.clear(); // and with it the selection
    else this.stage.show(this.shapes());
  }

  /** What is outlined now. */
  shapes() {
    if (this.selected?.path) return [{ path: this.selected.path, kind: this.selected.pending ? "pending" : "" }];
    if (this.hits) return this.hits.filter((hit) => hit.is_hit).map((hit) => ({ path: hit.path, hue: hit.text_index }));
    return this.showsAll ? this.things.map((thing, hue) => ({ path: thing.path, hue })) : [];
  }

  moreLikeThis() {
    const { selected } = this;
    if (!selected?.path || selected.pending || selected.error) return;
    const query = this.picture.more(selected);
    if (!selected.region_id) keepCutOut(query, cutOut($("stage-image"), this.image, selected));
    this.actions.ask(query);
  }

  async delete() {
    if (!this.image || !this.picture.stored) return;
    const { id, collection } = this.picture;
    const what = `“${this.image.name || "Untitled"}” and its ${count(this.things.length, "thing")} will be deleted. ${outlook(1)}`;
    if (!(await confirmed("Delete this picture?", what))) return;
    const kept = await keepFiles(collection, [id]);
    try {
      await api.deleteImage(collection, id);
    } catch (error) {
      if (error.status !== 404) return toast(error.message); // not there: somebody else has deleted it
    }
    if (this.picture?.id === id) this.actions.close();
    this.actions.deleted(id);
    sayDeleted("The picture is deleted.", collection, kept, [id]);
  }

  /** Changes tags or facts of the open picture; resolves with null if another one is open by then. */
  async change(change, picture = this.picture) {
    const image = await api.changeImage(picture.collection, picture.id, change);
    if (picture !== this.picture) return null;
    Object.assign(this.image, { tags: image.tags, attributes: image.attributes });
    return image;
  }

  async saveOriginal() {
    const { picture, image } = this;
    if (!image) return;
    try {
      save(await api.content(picture.collection, picture.id), (image.name || "picture").replace(/^.*\//, ""));
    } catch (error) {
      toast(error.message);
    }
  }

  step(by) {
    const next = this.actions.neighbour(this.picture.id, by);
    if (next) this.actions.open(next);
  }

  escape() {
    if (!this.stage.empty || this.selected || this.hits) this.deselect();
    else this.actions.close();
  }

  key(event) {
    if (typing(event) || event.altKey || $("confirm").open) return;
    const key = event.key.toLowerCase();
    if (event.ctrlKey || event.metaKey) {
      if (key === "z" && !event.shiftKey) this.stage.undo();
      else if (key === "y" || key === "z") this.stage.redo();
      else return;
    } else if (key === "m") this.moreLikeThis();
    else if (event.key === "Delete") this.delete();
    else if (event.key === "PageUp" || event.key === "PageDown") this.step(event.key === "PageUp" ? -1 : 1);
    else if (event.key === "[" || event.key === "]") this.cycle(event.key === "]" ? 1 : -1);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  cycle(step) {
    const things = this.hits ?? this.things;
    if (!things.length) return;
    const here = things.findIndex((thing) => thing.region_id === this.selected?.region_id);
    const index = here < 0 ? (step > 0 ? 0 : things.length - 1) : (here + step + things.length) % things.length;
    this.choose(things[index]);
  }

  /** What part of the picture an area is, in words. */
  share(area) {
    const percent = (100 * area) / (this.image.width * this.image.height);
    return percent < 1 ? "under 1 %" : `${Math.round(percent)} %`;
  }
}

const inBox = (box, x, y) => box.x_min <= x && x < box.x_max && box.y_min <= y && y < box.y_max;

const ALIKE = 0.92; // of areas: a click's masks lie within each other, so these are nearly the same

/** The masks of a click, best first, as a choice from small to large; null where there is none. */
function choicesOf(candidates, at) {
  const masks = [];
  for (const one of candidates) {
    const alike = masks.some(({ area }) => Math.min(area, one.area) / Math.max(area, one.area) > ALIKE);
    if (!alike) masks.push({ box: one.box, area: one.area, path: outline(one) });
  }
  const [first] = masks;
  masks.sort((a, b) => a.area - b.area);
  const best = masks.indexOf(first);
  return masks.length > 1 ? { at, masks, best, chosen: best } : null;
}

/** Whether two points or boxes are the same. */
const same = (a, b) => Object.keys(a).every((key) => a[key] === b[key]);
