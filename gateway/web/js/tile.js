/** One tile of the grid: a picture with what was found in it, its name and its score. */

import * as api from "./api.js";
import { count, h, icon } from "./dom.js";
import { day } from "./facts.js";
import { outline } from "./mask.js";
import { draw, HUES, overlay } from "./overlay.js";
import { phrases } from "./url.js";

/** What in a picture was found: the region of a result that is grouped by picture, or the result itself. */
export const spotOf = (item) => item.best_region ?? item;

/** Whether an order is that of the days on which pictures were taken. */
export const byTime = (sort) => sort === "newest" || sort === "oldest";

/**
 * Makes a tile.
 * @param {object} item A result, or a stored picture with the score null.
 * @param {object} state What is asked; see url.js.
 * @param {{open: () => void, like: () => void, pick: (event: MouseEvent) => void}} on What its buttons do.
 */
export function makeTile(item, { collection, text, level, sort }, on) {
  const { image } = item;
  const spot = spotOf(item);
  const isSearched = item.score !== null;
  const isFind = isSearched && spot.level !== "image";
  const name = image.name || "Untitled";
  const settled = () => picture.classList.add("settled"); // the outline waits for its picture
  const picture = h("img", { alt: "", loading: "lazy", draggable: false, load: settled, error: settled });
  api.show(picture, api.thumbnailUrl(collection, item.image_id)).catch(() => picture.classList.add("blank", "settled"));
  const things = [spot, ...(item.others ?? [])].sort((a, b) => (a.text_index ?? 0) - (b.text_index ?? 0));
  const lines = overlay();
  if (isFind) draw(lines, image, things.map((one) => ({ path: outline(one, { tidy: true }), hue: one.text_index ?? 0 })), true);
  const words = [isFind ? `${things.map((one) => one.label ?? "Found").join(" and ")} in ${name}` : name, isSearched && `score ${item.score.toFixed(2)}`].filter(Boolean).join(", ");
  const label = (one) => h("b", { className: `hue-${(one.text_index ?? 0) % HUES}` }, one.label ?? item.label);
  const several = phrases(text).length > 1 && item.label;
  const score = () => h("span.score", { title: "Similarity of query and result (cosine)" },
    level === "both" && h("span.kind", {}, isFind ? "thing" : "picture"), item.confident === false && h("span.kind", {}, "weak"), item.score.toFixed(2));
  const element = h("li", {},
    h("button.tile", { type: "button", "aria-label": words, tabIndex: -1, click: on.open }, picture, isFind && lines),
    h("button.pick", { type: "button", role: "checkbox", tabIndex: -1, title: "Select (X)", "aria-label": `Select ${name}`, "aria-checked": "false", click: on.pick }, icon("check")),
    h("button.like", { type: "button", tabIndex: -1, title: "More like this", "aria-label": `More like this: ${name}`, click: on.like }, icon("similar")),
    h("div.caption", {},
      h("span.name", { title: name, dir: "auto" }, ...(several ? things.map(label) : [name])),
      isSearched ? score() : h("span.score", {}, byTime(sort) && day(image.attributes?.taken_at) || count(image.region_count ?? 0, "thing"))),
  );
  const ratio = Math.min(2.6, Math.max(0.62, image.width / image.height));
  element.style.setProperty("--ratio", ratio.toFixed(3));
  return element;
}
