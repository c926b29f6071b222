/** The card of what is selected in the viewer, and what can be done with it. */

import { cropOf } from "./crop.js";
import { $, h, icon, save, saveFrom, stem, toast } from "./dom.js";

/**
 * Shows what is selected.
 * @param {object|null} selected A thing, a hit, or what was pointed at (`kind` is then "prompt").
 * @param {object} about The picture: `image` (null while it loads), `stored`, `share` of an area in words; `coco` asks for what is selected.
 * @param {object} on moreLikeThis, chooseMask, and lessLikeThis where there is a search to narrow.
 */
export function describe(selected, { image, stored, coco, share }, on) {
  if (!selected) {
    const hint = stored ? "Click a thing to select it. Alt-click to exclude, drag to draw a box." : "Click the thing to search for. Alt-click to exclude, drag to draw a box.";
    $("selection").replaceChildren(h("p.muted", {}, hint));
    return;
  }
  const { pending, error, path, score } = selected;
  const facts = [selected.area !== undefined && image && `${share(selected.area)} of the picture`, score != null && `score ${score.toFixed(2)}`].filter(Boolean).join(" · ");
  const name = selected.label ?? (selected.kind === "region" ? `Thing ${selected.number}` : "What you pointed at");
  const disabled = Boolean(pending || error || !path);
  const saveCoco = () => saveFrom(coco(), `${stem(image.name)}.coco.json`);
  const crop = async () => save(await cropOf($("stage-image"), image, path), `${stem(image.name)}-crop.png`);
  const copies = Boolean(window.ClipboardItem && navigator.clipboard?.write); // not without HTTPS, except on this machine
  const copy = () => navigator.clipboard.write([new ClipboardItem({ "image/png": cropOf($("stage-image"), image, path) })]).then(() => toast("Copied."), (error) => toast(error.message));
  const choosing = document.activeElement instanceof HTMLInputElement && document.activeElement.name === "mask";
  const parts = [
    h("p.selected-name", {}, h("b", {}, name), h("span.muted", {}, pending ? "outlining…" : facts)),
    selected.choices && choice(selected.choices, on.chooseMask),
    error && h("p.error-text", { role: "alert" }, error),
    !error && h("div.actions", {},
      h("button.primary", { type: "button", id: "more-like-this", disabled, click: on.moreLikeThis }, icon(stored ? "similar" : "search"), stored ? "More like this" : "Search for this"),
      on.lessLikeThis && selected.region_id && h("button.secondary.whole", { type: "button", click: () => on.lessLikeThis(selected.region_id) }, icon("minus"), "Less like this"),
      h(stored ? "button.secondary" : "button.secondary.whole", { type: "button", disabled, click: crop }, icon("crop"), "Crop"),
      copies && h("button.secondary", { type: "button", disabled, title: "Copy the cut-out as a picture", click: copy }, "Copy"),
      stored && h("button.secondary", { type: "button", disabled, click: saveCoco }, icon("download"), "COCO")),
  ];
  $("selection").replaceChildren(...parts.filter(Boolean));
  if (choosing) $("selection").querySelector("input:checked")?.focus();
}

const SIZES = { 2: ["Smaller", "Larger"], 3: ["Small", "Medium", "Large"] };

/** What a click may mean: a part, a thing, a group of them. */
const choice = ({ masks, chosen }, choose) =>
  h("div.segmented", { role: "radiogroup", "aria-label": "Which of these is meant" },
    ...masks.map((_, index) => h("label", {},
      h("input", { type: "radio", name: "mask", checked: index === chosen, change: () => choose(index) }), h("span", {}, SIZES[masks.length][index]))));
