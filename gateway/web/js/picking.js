/** Selecting several pictures of the grid, and what can be done with all of them at once. */

import * as api from "./api.js";
import { confirmed } from "./confirm.js";
import { $, announce, count, h, saveFrom, toast } from "./dom.js";
import { keepFiles, outlook, sayDeleted } from "./undo.js";
import { phrases } from "./url.js";

const AT_ONCE = 4; // requests

export class Picking {
  /** @param {{tiles: () => {item: object, element: HTMLElement}[], collection: () => string, forget: (ids: string[]) => void, coco: (ids: string[]) => Promise<object>}} grid */
  constructor({ tiles, collection, forget, coco }) {
    this.coco = coco;
    this.tiles = tiles;
    this.collection = collection;
    this.forget = forget;
    this.on = false;
    this.chosen = new Set(); // ids of pictures
    $("select").addEventListener("click", () => (this.on ? this.end() : this.begin()));
    $("picked-close").addEventListener("click", () => this.end());
    $("picked-all").addEventListener("click", () => this.all());
    $("picked-tags").addEventListener("click", () => $("tagging").showModal());
    $("picked-export").addEventListener("click", () => this.export());
    $("picked-delete").addEventListener("click", () => this.delete());
    $("tagging-cancel").addEventListener("click", () => $("tagging").close());
    $("tagging").addEventListener("submit", (event) => (event.preventDefault(), this.tag()));
  }

  begin() {
    this.on = true;
    this.show();
  }

  /** Back to opening pictures with a click. */
  end() {
    this.on = false;
    this.chosen.clear();
    this.anchor = null;
    this.show();
  }

  /** Selects a picture or lets go of it; with `range` all from the one before to it. */
  toggle(id, { range = false } = {}) {
    const ids = this.tiles().map(({ item }) => item.image_id);
    const [from, to] = [ids.indexOf(this.anchor), ids.indexOf(id)].sort((a, b) => a - b);
    if (range && from >= 0) for (const one of ids.slice(from, to + 1)) this.chosen.add(one);
    else if (!this.chosen.delete(id)) this.chosen.add(id);
    this.anchor = id;
    this.begin();
  }

  /** Selects what is seen; the slider of the score may hide the rest. */
  all() {
    for (const { item, element } of this.tiles()) if (!element.hidden) this.chosen.add(item.image_id);
    this.begin();
  }

  /** Marks the tiles, those that came since too, and says how many are selected. */
  show() {
    $("grid").classList.toggle("picking", this.on);
    $("select").setAttribute("aria-pressed", String(this.on));
    $("picked").hidden = !this.on;
    for (const { item, element } of this.tiles()) this.mark(item, element);
    const { size } = this.chosen;
    const before = $("picked-count").textContent;
    $("picked-count").replaceChildren(`${size.toLocaleString("en")} `, h("span.words", {}, size === 1 ? "picture " : "pictures "), "selected"); // a phone has no room for the noun
    if (this.on && $("picked-count").textContent !== before) announce(`${count(size, "picture")} selected`);
    for (const id of ["picked-tags", "picked-export", "picked-delete"]) $(id).disabled = !this.chosen.size;
  }

  mark(item, element) {
    const chosen = this.chosen.has(item.image_id);
    element.classList.toggle("picked-tile", chosen);
    element.querySelector(".pick").setAttribute("aria-checked", String(chosen));
  }

  async delete() {
    const { size } = this.chosen;
    if (!size || !(await confirmed(`Delete ${count(size, "picture")}?`, `${size === 1 ? "It" : "They"} will be deleted with the things in ${size === 1 ? "it" : "them"}. ${outlook(size)}`))) return;
    const collection = this.collection();
    const kept = await keepFiles(collection, [...this.chosen]);
    const { done, problem } = await this.each((id) => api.deleteImage(collection, id));
    if (collection === this.collection()) this.forget(done);
    for (const id of done) this.chosen.delete(id);
    if (problem) this.show();
    else this.end();
    sayDeleted(problem ? `${count(done.length, "picture")} deleted, ${this.chosen.size} not: ${problem.message}` : `${count(done.length, "picture")} deleted.`, collection, kept, done);
  }

  /** The selected pictures as a COCO file. */
  async export() {
    $("picked-export").disabled = true;
    await saveFrom(this.coco([...this.chosen]), "pictures.coco.json");
    $("picked-export").disabled = false;
  }

  async tag() {
    const [add_tags, remove_tags] = ["tagging-add", "tagging-remove"].map((id) => phrases($(id).value));
    $("tagging").close();
    if (!add_tags.length && !remove_tags.length) return;
    const collection = this.collection();
    const { done, problem } = await this.each((id) => api.changeImage(collection, id, { add_tags, remove_tags }));
    toast(problem ? `Tags of ${count(done.length, "picture")} changed, of others not: ${problem.message}` : `Tags of ${count(done.length, "picture")} changed.`);
    for (const id of ["tagging-add", "tagging-remove"]) $(id).value = "";
  }

  /** Does the same with every selected picture; one that is gone is done. The last failure is the one that is told. */
  async each(work) {
    const left = [...this.chosen];
    const done = [];
    let problem = null;
    for (const button of $("picked").querySelectorAll("button")) button.disabled = true;
    const worker = async () => {
      for (let id = left.shift(); id; id = left.shift()) {
        try {
          await work(id);
          done.push(id);
        } catch (error) {
          if (error.status === 404) done.push(id);
          else problem = error;
        }
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, worker));
    for (const button of $("picked").querySelectorAll("button")) button.disabled = false;
    return { done, problem };
  }
}
