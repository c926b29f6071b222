/** One picture, large: its things, pointing at them, searching inside, and what can be done with a find. */

import * as api from "./api.js";
import { cocoOfImage } from "./coco.js";
import { saveCrop } from "./crop.js";
import { $, announce, count, h, icon, saveJson, toast, typing } from "./dom.js";
import { Mask, outline } from "./mask.js";
import { Stage } from "./stage.js";
import { phrases } from "./url.js";

export class Viewer {
  /** @param {object} actions ask, exclude, open, close, neighbour, deleted; see main.js. */
  constructor(actions) {
    this.actions = actions;
    this.dialog = $("viewer");
    this.image = null;
    this.stage = new Stage({
      hover: (x, y) => this.smallestAt(x, y),
      prompt: (prompt) => this.pointed(prompt),
    });
    this.dialog.addEventListener("cancel", (event) => (event.preventDefault(), this.escape()));
    this.dialog.addEventListener("keydown", (event) => this.key(event));
    $("viewer-close").addEventListener("click", () => actions.close());
    $("viewer-prev").addEventListener("click", () => this.step(-1));
    $("viewer-next").addEventListener("click", () => this.step(1));
    $("viewer-delete").addEventListener("click", () => this.delete());
    $("viewer-coco").addEventListener("click", () => saveJson(cocoOfImage(this.image, this.regions), `${stem(this.image.name)}.coco.json`));
    $("within").addEventListener("submit", (event) => (event.preventDefault(), this.searchWithin()));
  }

  /** Opens, changes or closes as the address says. `hit` is what the grid shows of the picture. */
  show({ view, collection }, hit) {
    if (!view) {
      this.id = null;
      this.stop?.abort();
      if (this.dialog.open) this.dialog.close();
      return;
    }
    if (view === this.id && collection === this.collection) return;
    Object.assign(this, { id: view, collection });
    this.load(hit);
  }

  async load(hit) {
    this.stop?.abort();
    const stop = (this.stop = new AbortController());
    Object.assign(this, { image: null, regions: [], selected: null, hits: null });
    $("viewer-name").textContent = hit?.image.name || "Picture";
    $("viewer-facts").textContent = "";
    $("within-text").value = "";
    $("stage-image").removeAttribute("src");
    this.stage.reset(hit?.image ?? { width: 1, height: 1 });
    this.message("Loading…");
    this.list();
    this.describe();
    if (!this.dialog.open) this.dialog.showModal();
    this.stage.element.focus();
    for (const [id, step] of [["viewer-prev", -1], ["viewer-next", 1]]) $(id).disabled = !this.actions.neighbour(this.id, step);
    const { id, collection } = this;
    try {
      const shown = showContent($("stage-image"), collection, id);
      const found = await api.regions(collection, id, stop.signal);
      await shown;
      if (stop.signal.aborted) return;
      this.image = found.image;
      this.regions = found.regions.map((region, i) => ({ ...region, number: i + 1, path: outline(region), area: region.area }));
      for (const region of this.regions) region.shape = region.mask && new Mask(region.mask);
      this.stage.reset(this.image);
      this.message(null);
      $("viewer-name").textContent = this.image.name || "Untitled";
      $("viewer-facts").textContent = `${this.image.width} × ${this.image.height} · ${count(this.regions.length, "thing")}`;
      const label = `${this.image.name || "Picture"}, ${this.image.width} by ${this.image.height} pixels, ${count(this.regions.length, "thing")}`;
      $("stage").setAttribute("aria-label", label);
      announce(label);
      this.list();
      const find = hit?.best_region ?? hit;
      const region = find?.region_id && this.regions.find((one) => one.region_id === find.region_id);
      if (region) this.select(region, hit);
      else this.describe();
    } catch (error) {
      if (error.name !== "AbortError") this.message(error.message);
    }
  }

  message(text) {
    $("stage-message").hidden = !text;
    $("stage-message").textContent = text ?? "";
  }

  /** The smallest thing that holds this point. */
  smallestAt(x, y) {
    let best = null;
    for (const region of this.regions) {
      if (!(region.shape ? region.shape.contains(x, y) : inBox(region.box, x, y))) continue;
      if (!best || region.area < best.area) best = region;
    }
    return best;
  }

  select(region, hit = null) {
    this.hits = null;
    this.stage.set([], null);
    this.selected = { ...region, kind: "region", score: hit?.score ?? region.score ?? null, label: hit?.label ?? region.label ?? null };
    this.stage.show([{ path: region.path }]);
    this.mark();
    this.describe();
  }

  deselect() {
    Object.assign(this, { selected: null, hits: null });
    this.stage.set([], null);
    this.stage.show([]);
    this.list();
    this.describe();
  }

  /** Points or a box: what is known there at once, then the model's own mask. */
  async pointed({ points, box }) {
    this.segmenting?.abort();
    if (!points.length && !box) return this.deselect();
    const stop = (this.segmenting = new AbortController());
    const guess = points.length === 1 && points[0].label && !box ? this.smallestAt(points[0].x, points[0].y) : null;
    this.selected = { kind: "prompt", points, drawn: box, path: guess?.path ?? this.selected?.path ?? null, pending: true };
    this.hits = null;
    if (guess) this.stage.show([{ path: guess.path, kind: "pending" }]);
    this.mark();
    this.describe();
    try {
      const found = await api.segment({ collection: this.collection, image_id: this.id, points, ...(box ? { box } : {}) }, stop.signal);
      const best = found.results[0]?.candidates[0];
      if (!best?.mask) throw new api.Problem(0, { detail: "Nothing stands out there. Try another point." });
      this.selected = { ...best, kind: "prompt", points, drawn: box, path: outline(best) };
      this.stage.show([{ path: this.selected.path }]);
      announce(`Outlined, ${share(best.area, this.image)} of the picture`);
    } catch (error) {
      if (error.name === "AbortError") return;
      this.selected = { ...this.selected, pending: false, error: error.message };
    }
    this.describe();
  }

  async searchWithin() {
    const texts = phrases($("within-text").value);
    if (!texts.length) return;
    const button = $("within").querySelector("button");
    button.disabled = true;
    try {
      const found = await api.searchWithin({ collection: this.collection, image_id: this.id, texts }, this.stop.signal);
      this.stage.set([], null);
      this.selected = null;
      const stored = new Map(this.regions.map((region) => [region.region_id, region]));
      this.hits = found.regions.map((hit) => ({ ...stored.get(hit.region_id), ...hit, path: stored.get(hit.region_id)?.path ?? outline(hit) }));
      const best = this.hits.filter((hit) => hit.is_hit);
      this.stage.show(best.map((hit) => ({ path: hit.path, hue: hit.text_index })));
      this.list();
      this.describe();
      announce(best.length ? `Best: ${best.map((hit) => `${hit.label}, score ${hit.score.toFixed(2)}`).join("; ")}` : "Nothing found");
    } catch (error) {
      if (error.name !== "AbortError") toast(error.message);
    } finally {
      button.disabled = false;
    }
  }

  /** The list of things: in their own order, or by score after a search inside. */
  list() {
    const things = this.hits ?? this.regions;
    $("regions-title").textContent = this.hits ? "Best first" : "Things in this picture";
    $("regions").replaceChildren(...things.map((region, i) => {
      const name = this.hits ? region.label : `Thing ${region.number}`;
      const fact = this.hits ? region.score.toFixed(2) : share(region.area, this.image);
      const label = `${name}, ${this.hits ? "score " : ""}${fact}, ${i + 1} of ${things.length}`;
      return h("li", {}, h("button.region", {
        type: "button", "aria-label": label, "aria-pressed": "false", data: { region: region.region_id ?? "" },
        click: () => this.choose(region),
        pointerenter: () => this.stage.show([...this.shapes(), { path: region.path, kind: "hover" }]),
        pointerleave: () => this.stage.show(this.shapes()),
      }, this.hits && h("i", { className: `swatch hue-${region.text_index % 6}` }), h("span", {}, name), h("span.muted", {}, fact)));
    }));
    this.mark();
  }

  choose(region) {
    const { hits } = this;
    this.select(region);
    this.hits = hits;
    this.mark();
    announce(`${region.label ?? `Thing ${region.number}`} selected`);
  }

  /** What is outlined now. */
  shapes() {
    if (this.selected?.path) return [{ path: this.selected.path, kind: this.selected.pending ? "pending" : "" }];
    return (this.hits ?? []).filter((hit) => hit.is_hit).map((hit) => ({ path: hit.path, hue: hit.text_index }));
  }

  mark() {
    for (const button of $("regions").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(Boolean(this.selected?.region_id) && button.dataset.region === this.selected.region_id));
    }
  }

  /** What is selected and what can be done with it. */
  describe() {
    const { selected } = this;
    if (!selected) {
      $("selection").replaceChildren(h("p.muted", {}, "Click a thing to select it. Alt-click takes away, dragging draws a box."));
      return;
    }
    const facts = [selected.area !== undefined && this.image && share(selected.area, this.image) + " of the picture", selected.score != null && `score ${selected.score.toFixed(2)}`].filter(Boolean).join(" · ");
    const name = selected.label ?? (selected.kind === "region" ? `Thing ${selected.number}` : "What you pointed at");
    const ready = !selected.pending && selected.path && !selected.error;
    const parts = [
      h("p.selected-name", {}, h("b", {}, name), h("span.muted", {}, selected.pending ? "outlining…" : facts)),
      selected.error && h("p.error-text", { role: "alert" }, selected.error),
      h("div.actions", {},
        h("button.primary", { type: "button", id: "more-like-this", disabled: !ready, click: () => this.moreLikeThis() }, icon("similar"), "More like this"),
        h("button.secondary", { type: "button", disabled: !ready, click: () => saveCrop($("stage-image"), this.image, selected.path, `${stem(this.image.name)}-crop.png`) }, icon("crop"), "Crop"),
        h("button.secondary", { type: "button", disabled: !ready, click: () => saveJson(cocoOfImage(this.image, [selected]), `${stem(this.image.name)}.coco.json`) }, icon("download"), "COCO"),
        selected.label && h("button.ghost", { type: "button", click: () => this.actions.exclude(selected.label) }, icon("minus"), `Not “${selected.label}”`)),
    ];
    $("selection").replaceChildren(...parts.filter(Boolean));
  }

  moreLikeThis() {
    const { selected } = this;
    if (!selected || selected.pending) return;
    if (selected.region_id) this.actions.ask({ region: selected.region_id });
    else this.actions.ask({ image: this.id, points: selected.points, box: selected.drawn });
  }

  async delete() {
    if (!this.image) return;
    const dialog = $("confirm");
    $("confirm-text").textContent = `“${this.image.name || "Untitled"}” and its ${count(this.regions.length, "thing")} will be gone for good.`;
    dialog.returnValue = "no";
    dialog.showModal();
    await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
    if (dialog.returnValue !== "yes") return;
    const { id, collection } = this;
    try {
      await api.deleteImage(collection, id);
      this.actions.close();
      this.actions.deleted(id);
    } catch (error) {
      toast(error.message);
    }
  }

  step(by) {
    const next = this.actions.neighbour(this.id, by);
    if (next) this.actions.open(next);
  }

  escape() {
    if (!this.stage.empty || this.selected || this.hits) this.deselect();
    else this.actions.close();
  }

  key(event) {
    if (typing(event) || event.ctrlKey || event.metaKey || event.altKey || $("confirm").open) return;
    if (event.key === "m" || event.key === "M") this.moreLikeThis();
    else if (event.key === "Delete") this.delete();
    else if (event.key === "[" || event.key === "]") this.cycle(event.key === "]" ? 1 : -1);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  cycle(step) {
    const things = this.hits ?? this.regions;
    if (!things.length) return;
    const here = things.findIndex((thing) => thing.region_id === this.selected?.region_id);
    const index = here < 0 ? (step > 0 ? 0 : things.length - 1) : (here + step + things.length) % things.length;
    this.choose(things[index]);
  }
}

/** The picture itself; its thumbnail when the browser cannot show the file (TIFF). */
async function showContent(image, collection, id) {
  const loaded = () => new Promise((resolve, reject) => ((image.onload = resolve), (image.onerror = reject)));
  const first = loaded();
  await api.show(image, api.contentUrl(collection, id));
  try {
    await first;
  } catch {
    const second = loaded();
    await api.show(image, api.thumbnailUrl(collection, id));
    await second.catch(() => {});
  }
}

const inBox = (box, x, y) => box.x_min <= x && x < box.x_max && box.y_min <= y && y < box.y_max;
const share = (area, image) => {
  const percent = (100 * area) / (image.width * image.height);
  return percent < 1 ? "under 1 %" : `${Math.round(percent)} %`;
};
const stem = (name) => (name || "picture").replace(/\.[^.]*$/, "");
