/** The tags of the open picture: each can be taken away, others added. */

import { $, h, icon, toast } from "./dom.js";
import { phrases } from "./url.js";

export class Tags {
  /** @param {(change: {add_tags?: string[], remove_tags?: string[]}) => Promise<object>} change Resolves with the changed picture. */
  constructor(change) {
    this.change = change;
    $("tags").addEventListener("submit", async (event) => {
      event.preventDefault();
      const words = phrases($("tags-new").value);
      if (words.length && (await this.send({ add_tags: words }))) $("tags-new").value = "";
    });
  }

  show({ tags = [] }) {
    $("tags-list").replaceChildren(...tags.map((tag) => h("li.tag", {}, h("span", { dir: "auto" }, tag),
      h("button.ghost.round.small", { type: "button", data: { needs: "write" }, "aria-label": `Remove the tag ${tag}`, click: () => this.send({ remove_tags: [tag] }) }, icon("close")))));
  }

  /** Whether the change was made; the focus stays in the form, whose buttons are made anew. */
  async send(change) {
    try {
      const image = await this.change(change);
      if (!image) return false; // another picture is open by now
      this.show(image);
      $("tags-new").focus();
      return true;
    } catch (error) {
      toast(error.message);
      return false;
    }
  }
}
