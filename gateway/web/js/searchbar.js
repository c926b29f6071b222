/** The search field, the example next to it, and the filters. */

import { $, h, icon, typing } from "./dom.js";
import { cutOut, recall } from "./query_images.js";
import * as api from "./api.js";
import { exampleWords, filterCount, HOME, isSearch, MINE, phrases, usualLevel } from "./url.js";

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
    $("filters").addEventListener("change", (event) => (event.target === $("min") ? this.slide() : this.filter()));
    $("min").addEventListener("blur", () => (this.slid = false));
    $("filters").addEventListener("submit", (event) => (event.preventDefault(), this.filter()));
    $("filters").addEventListener("reset", (event) => {
      event.preventDefault();
      const { level, group, every, min, size, tags, since, until, not, unlike } = HOME;
      go({ level, group, every, min, size, tags, since, until, not, unlike });
    });
    $("min").addEventListener("input", () => {
      const min = Number($("min").value);
      $("min-value").textContent = min ? min.toFixed(2) : "any";
      document.dispatchEvent(new CustomEvent("threshold", { detail: min || null }));
    });
    $("sort").addEventListener("change", () => go({ sort: $("sort").value }));
    $("filter-toggle").addEventListener("click", () => this.toggle(!this.filtersOpen));
    $("filters").addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || typing(event)) return;
      this.toggle(false);
      $("filter-toggle").focus();
    });
  }

  toggle(open) {
    this.filtersOpen = open;
    $("filters").hidden = !open;
    $("filter-toggle").setAttribute("aria-expanded", String(open));
  }

  /** The keyboard moves the slider in small steps: one search when it rests, one entry of the history in all. */
  slide() {
    clearTimeout(this.resting);
    this.resting = setTimeout(() => {
      this.filter({ replace: this.slid });
      this.slid = true;
    }, SLIDER_RESTS_MS);
  }

  filter(options) {
    const form = $("filters").elements;
    this.go({
      level: form.level.value === usualLevel(this.state) ? "" : form.level.value,
      group: form.group.checked,
      every: form.every.checked,
      min: Number(form.min.value) || null,
      size: form.size.value,
      tags: form.tags.value.trim(),
      since: form.since.value,
      until: form.until.value,
      not: form.not.value.trim(),
    }, options);
  }

  /** Shows a state in the fields. */
  show(state) {
    if (state.text !== this.state?.text) $("q").value = state.text; // else what is being typed stays
    this.state = state;
    clearTimeout(this.resting);
    const form = $("filters").elements;
    form.level.value = state.level || usualLevel(state);
    form.group.checked = state.group;
    form.every.checked = state.every;
    form.min.max = Math.max(form.min.max, state.min ?? 0); // a slider cuts what is above
    form.min.value = state.min ?? 0;
    $("min-value").textContent = state.min ? state.min.toFixed(2) : "any";
    form.size.value = state.size;
    form.tags.value = state.tags;
    form.since.value = state.since;
    form.until.value = state.until;
    form.not.value = state.not;
    const active = filterCount(state);
    $("filter-count").hidden = !active;
    $("filter-count").textContent = String(active);
    $("filter-count").setAttribute("aria-label", `${active} in use`);
    $("sort").value = state.sort;
    const searching = isSearch(state);
    for (const part of document.querySelectorAll("[data-search]")) part.hidden = !searching;
    $("every").hidden = phrases(state.text).length < 2 || !state.group;
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
    const words = capitalized(exampleWords(state));
    example.hidden = !words;
    $("q").placeholder = words ? "Add words…" : "Find anything…";
    if (!words) return;
    const image = h("img", { alt: "", error: () => image.classList.add("blank") });
    const own = cutOut(state) ?? (state.picture && recall(state.picture));
    if (own) image.src = own;
    else if (!state.picture) api.show(image, state.region ? api.cropUrl(state.collection, state.region) : api.thumbnailUrl(state.collection, state.image)).catch(() => {});
    const remove = removal(`Remove the example: ${exampleWords(state)}`, () => this.go({ picture: "", region: "", image: "", points: [], box: null }));
    const point = () => this.go({ view: MINE });
    const label = state.picture
      ? h("button.ghost.small", { type: "button", id: "point", title: "Point at a thing in your picture", click: point }, image, h("span", {}, state.points.length || state.box ? words : "Point at a thing"))
      : h("span.example-label", {}, image, h("span", {}, words));
    example.replaceChildren(label, remove);
  }
}

const SLIDER_RESTS_MS = 300;

const capitalized = (words) => words.charAt(0).toUpperCase() + words.slice(1);

const removal = (label, click) => h("button.ghost.round.small", { type: "button", "aria-label": label, click }, icon("close"));
