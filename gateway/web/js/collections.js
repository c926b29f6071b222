/** The collections: which there are, going to another one, making one, deleting one. */

import * as api from "./api.js";
import { confirmed } from "./confirm.js";
import { $, count, h, icon, toast } from "./dom.js";
import { HOME } from "./url.js";

const NEW = ""; // values of the last choices in the list; no collection has such a name
const MANAGE = " ";

export class Collections {
  /** @param {{enter: (name: string) => void}} actions */
  constructor({ enter }) {
    this.enter = enter;
    this.names = new Set();
    $("collection").addEventListener("change", () => this.choose($("collection").value));
    $("new-collection").addEventListener("submit", (event) => (event.preventDefault(), this.create($("new-collection-name").value.trim())));
    $("new-collection-cancel").addEventListener("click", () => $("new-collection").close());
    $("manage-new").addEventListener("click", () => ($("manage").close(), this.choose(NEW)));
  }

  /** Shows which collection is open. */
  show(current) {
    this.current = current;
    const names = [...new Set([...this.names, current])];
    $("collection").replaceChildren(...names.map((name) => new Option(name, name, false, name === current)), new Option("New collection…", NEW), new Option("Manage collections…", MANAGE));
    $("drop-target").textContent = `Add to “${current}”`;
  }

  /** Asks once which collections there are. */
  async list() {
    if (this.names.size || this.asking) return;
    this.asking = true;
    const found = await api.collections().catch(() => []); // the one that is open stays
    this.asking = false;
    for (const { name } of found) this.names.add(name);
    if (found.length && this.current === HOME.collection && !this.names.has(this.current)) return this.enter(found[0].name); // all that the key may see
    this.show(this.current);
  }

  choose(name) {
    if (name !== NEW && name !== MANAGE) return this.enter(name);
    this.show(this.current);
    if (name === MANAGE) return this.manage();
    $("new-collection-name").value = "";
    $("new-collection-error").textContent = "";
    $("new-collection").showModal();
  }

  /** A table of all collections with what is in them. */
  async manage() {
    let found;
    try {
      found = await api.collections();
    } catch (error) {
      return toast(error.message);
    }
    $("manage-list").replaceChildren(...found.map(({ name, image_count, record_count, model }) => h("li", {},
      h("button.ghost", { type: "button", title: `Open ${name}`, "aria-current": String(name === this.current), click: () => ($("manage").close(), this.enter(name)) },
        h("b", { dir: "auto" }, name),
        h("span.muted", {}, `${count(image_count, "picture")}, ${count(Math.max(0, record_count - image_count), "thing")}`),
        h("span.muted", { title: `Model, and the first digits of its weights' SHA-256: ${model.weights_digest}` }, `${model.family}/${model.variant}`)),
      h("button.ghost.round.danger", { type: "button", data: { needs: "admin" }, title: `Delete ${name}`, "aria-label": `Delete the collection ${name}`, click: () => this.delete(name, image_count) }, icon("trash")))));
    if (!$("manage").open) $("manage").showModal();
  }

  async delete(name, pictures) {
    if (!(await confirmed(`Delete the collection “${name}”?`, `${count(pictures, "picture")} and the things in them will be permanently deleted.`))) return;
    try {
      await api.deleteCollection(name);
    } catch (error) {
      if (error.status !== 404) return toast(error.message); // not there: somebody else has deleted it
    }
    this.names.delete(name);
    if (name === this.current) {
      $("manage").close();
      this.enter([...this.names][0] ?? HOME.collection);
    } else {
      this.show(this.current);
      this.manage();
    }
    toast(`The collection “${name}” is deleted.`);
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
