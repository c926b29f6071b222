/** The search field, the example beside it, and the filters. */

import { $, h, icon, typing } from "./dom.js";
import { recall } from "./pictures.js";
import * as api from "./api.js";
import { filterCount, HOME, isSearch } from "./url.js";

export class SearchBar {
  /** @param {{ask: Function, go: Function}} actions */
  constructor({ ask, go }) {
    this.go = go;
    this.filtersOpen = false;
    $("search").addEventListener("submit", (event) => {
      event.preventDefault();
      const text = $("q").value.trim();
      if (this.state.picture) ask({ text, picture: this.state.picture });
      else if (text || !isSearch(this.state)) ask({ text });
    });
    $("filters").addEventListener("change", () => this.filter());
    $("filters").addEventListener("submit", (event) => (event.preventDefault(), this.filter()));
    $("filters").addEventListener("reset", (event) => {
      event.preventDefault();
      const { level, group, min, size, tags, not } = HOME;
      go({ level, group, min, size, tags, not });
    });
    $("min").addEventListener("input", () => {
      const min = Number($("min").value);
      $("min-value").textContent = min ? min.toFixed(2) : "any";
      document.dispatchEvent(new CustomEvent("threshold", { detail: min || null }));
    });
    $("filter-toggle").addEventListener("click", () => this.toggle(!this.filtersOpen));
    $("filters").addEventListener("keydown", (event) => event.key === "Escape" && !typing(event) && this.toggle(false));
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
    this.state = state;
    if ($("q").value.trim() !== state.text) $("q").value = state.text;
    $("collection").value = state.collection;
    const form = $("filters").elements;
    form.level.value = state.level;
    form.group.checked = state.group;
    form.min.value = state.min ?? 0;
    $("min-value").textContent = state.min ? state.min.toFixed(2) : "any";
    form.size.value = state.size;
    form.tags.value = state.tags;
    form.not.value = state.not;
    const active = filterCount(state);
    $("filter-count").hidden = !active;
    $("filter-count").textContent = active;
    $("filter-count").setAttribute("aria-label", `${active} in use`);
    $("result-actions").hidden = !isSearch(state);
    this.toggle(this.filtersOpen);
    this.showExample(state);
  }

  showExample(state) {
    const example = $("example");
    const words = state.picture ? "Picture" : state.region ? "More like this" : state.image ? "The thing pointed at" : "";
    example.hidden = !words;
    if (!words) return;
    const image = h("img", { alt: "" });
    if (state.picture) image.src = recall(state.picture) ?? "";
    else api.show(image, api.thumbnailUrl(state.collection, state.image || state.region.replace(/-r\d+$/, ""))).catch(() => {});
    const remove = h("button.ghost.round.small", {
      type: "button",
      "aria-label": `Remove the example (${words})`,
      click: () => this.go({ picture: "", region: "", image: "", points: [], box: null }),
    }, icon("close"));
    example.replaceChildren(image, h("span", {}, words), remove);
  }
}
