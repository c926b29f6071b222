/** The list of things next to a picture: a small cut-out of each, its name, and one fact. */

import { cutOut } from "./crop.js";
import { $, h } from "./dom.js";

export class Things {
  /** @param {{choose: (thing: object) => void, point: (thing: object|null) => void}} on Clicked; hovered or left. */
  constructor(on) {
    this.on = on;
  }

  /**
   * Shows things in this order.
   * @param {object[]} things Regions, or hits of a search inside when `scored`.
   * @param {{scored: boolean, image: object, share: (area: number) => string}} how `share` is a part of the picture, in words.
   */
  show(things, { scored, image, share }) {
    $("regions-title").textContent = scored ? "Best first" : "Things in this picture";
    $("regions").replaceChildren(...things.map((thing, i) => {
      const name = thing.label ?? `Thing ${thing.number}`;
      const fact = scored ? thing.score.toFixed(2) : share(thing.area);
      return h("li", {}, h("button.region", {
        type: "button", "aria-label": `${name} ${fact}, ${i + 1} of ${things.length}`, "aria-pressed": "false", data: { region: thing.region_id ?? "" },
        click: () => this.on.choose(thing),
        pointerenter: () => this.on.point(thing),
        pointerleave: () => this.on.point(null),
      }, cutOut($("stage-image"), image, thing), scored && h("i", { className: thing.is_hit ? `swatch hue-${thing.text_index % 6}` : "swatch none" }), h("span", {}, name), h("span.muted", {}, fact)));
    }));
  }

  /** Presses the button of the selected thing. */
  mark(regionId) {
    for (const button of $("regions").querySelectorAll("button")) {
      const pressed = Boolean(regionId) && button.dataset.region === regionId;
      button.setAttribute("aria-pressed", String(pressed));
      if (pressed) reveal(button, $("regions"));
    }
  }
}

/** Scrolls a list, and nothing around it, until an element of it shows. */
function reveal(element, list) {
  const above = element.getBoundingClientRect().top - list.getBoundingClientRect().top;
  if (above < 0) list.scrollTop += above;
  else list.scrollTop += Math.max(0, above + element.offsetHeight - list.clientHeight);
}
