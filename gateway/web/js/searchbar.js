/** The search field, the example beside it, and the filters. */

import { $, h, icon, typing } from "./dom.js";
import { recall } from "./query_images.js";
import * as api from "./api.js";
import { filterCount, HOME, isSearch, MINE } from "./url.js";

export class SearchBar {
  /** @param {{ask: Function, go: Function}} actions */
  constructor({ ask, go }) {
    this.go = go;
    this.filtersOpen = false;
    $("search").addEventListener("submit", (event) => {
      event.preventDefault();
      const { picture, region, image, points, box } = this.state; // words are added to an example
      ask({ text: $("q").value.trim(), picture, region, image, points, box });
    });
    $("filters").addEventListener("change", () => this.filter());
    $("filters").addEventListener("submit", (event) => (event.preventDefault(), this.filter()));
    $("filters").addEventListener("reset", (event) => {
      event.preventDefault();
      const { level, group, min, size, tags, not, unlike } = HOME;
      go({ level, group, min, size, tags, not, unlike });
    });
    $("min").addEventListener("input", () => {
      const min = Number($("min").value);
      $("min-value").textContent = min ? min.toFixed(2) : "any";
      document.dispatchEvent(new CustomEvent("threshold", { detail: min || null }));
    });
    $("filter-toggle").addEventListener("click", () => this.toggle(!this.filtersOpen));
    $("filters").addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || typing(event)) return;
      this.toggle(false);
      $("filter-toggle").focus();
    });
  }

  toggle(open) {
    this.filtersOpen = open;
    $("filters").hidden = !(open && isSearch(this.state));
    $("filter-toggle").setAttribute("aria-expanded", String(open));
  }

  filter() {
    const form = $("filters").elements;
    this.go({
      level: form.level.value,
      group: form.group.checked,
      min: Number(form.min.value) || null,
      size: form.size.value,
      tags: form.tags.value.trim(),
      not: form.not.value.trim(),
    });
  }

  /** Shows a state in the fields. */
  show(state) {
    if (state.text !== this.state?.text) $("q").value = state.text; // else what is being typed stays
    this.state = state;
    $("collection").value = state.collection;
    const form = $("filters").elements;
    form.level.value = state.level;
    form.group.checked = state.group;
    form.min.max = Math.max(form.min.max, state.min ?? 0); // a slider cuts what is above
    form.min.value = state.min ?? 0;
    $("min-value").textContent = state.min ? state.min.toFixed(2) : "any";
    form.size.value = state.size;
    form.tags.value = state.tags;
    form.not.value = state.not;
    const active = filterCount(state);
    $("filter-count").hidden = !active;
    $("filter-count").textContent = String(active);
    $("filter-count").setAttribute("aria-label", `${active} in use`);
    $("result-actions").hidden = !isSearch(state);
    this.toggle(this.filtersOpen);
    this.showUnlike(state);
    this.showExample(state);
  }

  /** What is not meant, each with a way to take it out. */
  showUnlike({ collection, unlike }) {
    $("unlike").hidden = !unlike.length;
    $("unlike-list").replaceChildren(...unlike.map((region, i) => {
      const remove = () => this.go({ unlike: unlike.filter((one) => one !== region) });
      const image = h("img", { alt: "" });
      api.show(image, api.cropUrl(collection, region)).catch(() => {});
      return h("li.example", {}, image, removal(`Allow thing ${i + 1} again`, remove));
    }));
  }

  showExample(state) {
    const example = $("example");
    const pointed = Boolean(state.points.length || state.box);
    const words = state.picture ? (pointed ? "Thing in your picture" : "Your picture") : state.region ? "More like this" : state.image ? "Like this thing" : "";
    example.hidden = !words;
    $("q").placeholder = words ? "Add words…" : "Find anything…";
    if (!words) return;
    const image = h("img", { alt: "" });
    if (state.picture) image.src = recall(state.picture) ?? "";
    else api.show(image, state.region ? api.cropUrl(state.collection, state.region) : api.thumbnailUrl(state.collection, state.image)).catch(() => {});
    const remove = removal(`Remove the example (${words})`, () => this.go({ picture: "", region: "", image: "", points: [], box: null }));
    const point = () => this.go({ view: MINE });
    const label = state.picture
      ? h("button.ghost.small", { type: "button", id: "point", title: "Point at a thing in your picture", click: point }, image, h("span", {}, pointed ? words : "Point at a thing"))
      : h("span.example-label", {}, image, h("span", {}, words));
    example.replaceChildren(label, remove);
  }
}

const removal = (label, click) => h("button.ghost.round.small", { type: "button", "aria-label": label, click }, icon("close"));
