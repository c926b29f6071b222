/** What stands in the place of pictures when there are none. */

import { $, h, icon } from "./dom.js";
import { filterCount, isSearch } from "./url.js";

/** Grey tiles while the first answer is still to come. */
export const skeletons = () => [1.3, 0.8, 1.5, 1, 0.7, 1.4, 1.1, 0.9].map((ratio) => {
  const element = h("li.skeleton", { "aria-hidden": "true" }, h("div.tile"));
  element.style.setProperty("--ratio", String(ratio));
  return element;
});

/** A search whose results are all weak; the button that shows them stands below. */
export const noMatch = (title) => [
  h("h2", {}, `No confident match for ${title.charAt(0).toLowerCase()}${title.slice(1)}`),
  h("p", {}, "Nothing in this collection is similar enough. Try other words, or look at the weaker matches."),
];

/** A search, or a list with filters, that has found nothing. */
export const nothing = (state) => [
  h("h2", {}, "Nothing found"),
  h("p", {}, !filterCount(state) ? "There is nothing in this collection to compare with. Add pictures first."
    : isSearch(state) ? "Nothing passes all filters. Lower the minimum score, or change dates, size or exclusions." : "No picture matches these tags and days."),
  filterCount(state) > 0
    ? h("button.secondary", { type: "button", click: () => $("filters").reset() }, "Clear the filters")
    : h("button.secondary", { type: "button", click: () => $("add").click() }, icon("plus"), "Add pictures"),
];

/** A collection without pictures. */
export const welcome = () => [
  h("div.welcome-art", { "aria-hidden": "true" }, h("i"), h("i"), h("i")),
  h("h2", {}, "Find anything in any picture"),
  h("p", {}, "Drop pictures or whole folders anywhere on this page. Each thing in them becomes something you can find."),
  h("button.primary", { type: "button", click: () => $("add").click() }, icon("plus"), "Add pictures"),
  h("button.ghost", { type: "button", click: () => $("folder").click() }, "Add a folder"),
  h("ul.ways", {},
    h("li", {}, h("b", {}, "By words"), "“red mug”, “dog with a ball”"),
    h("li", {}, h("b", {}, "By example"), "drop or paste a picture into the search"),
    h("li", {}, h("b", {}, "By pointing"), "open a picture and click the thing")),
];
