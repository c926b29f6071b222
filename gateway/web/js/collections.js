/** The collections: which there are, going to another one, and making one. */

import * as api from "./api.js";
import { $, toast } from "./dom.js";

const NEW = ""; // the value of the last choice in the list

export class Collections {
  /** @param {{enter: (name: string) => void}} actions */
  constructor({ enter }) {
    this.enter = enter;
    this.names = new Set();
    $("collection").addEventListener("change", () => this.choose($("collection").value));
    $("new-collection").addEventListener("submit", (event) => (event.preventDefault(), this.create($("new-collection-name").value.trim())));
    $("new-collection-cancel").addEventListener("click", () => $("new-collection").close());
  }

  /** Shows which collection is open. */
  show(current) {
    this.current = current;
    const names = [...new Set([...this.names, current])];
    $("collection").replaceChildren(...names.map((name) => new Option(name, name, false, name === current)), new Option("New collection…", NEW));
    $("drop-target").textContent = `Add to “${current}”`;
  }

  /** Asks once which collections there are. */
  async list() {
    if (this.names.size || this.asking) return;
    this.asking = true;
    const found = await api.collections().catch(() => []); // the one that is open stays
    this.asking = false;
    for (const { name } of found) this.names.add(name);
    this.show(this.current);
  }

  choose(name) {
    if (name !== NEW) return this.enter(name);
    this.show(this.current);
    $("new-collection-name").value = "";
    $("new-collection-error").textContent = "";
    $("new-collection").showModal();
  }

  /** Makes a collection and goes there. */
  async create(name) {
    try {
      await api.createCollection(name);
    } catch (error) {
      if ($("new-collection").open) $("new-collection-error").textContent = error.message;
      else toast(error.message);
      return;
    }
    this.names.add(name);
    $("new-collection").close();
    this.enter(name);
  }
}
