/** What is known of the open picture, by name: when, with what and where it was taken, and what else was said about it. */

import { $, h, icon, toast } from "./dom.js";

const TAKEN = "taken_at";
const NAMES = { taken_at: "Taken", camera: "Camera", place: "Place" };
const DAY = /^\d{4}-(0\d|1[0-2])-([0-2]\d|3[01])/;
const LENGTH = "2024-05-01T12:34:56".length; // what follows is the offset from UTC

/** The day of a time, as the clock of the place had it; false for what is none. */
export const day = (time = "") => dated(time, { dateStyle: "medium" });

/** Its month, likewise. */
export const month = (time = "") => dated(time, { month: "long", year: "numeric" });

const dated = (time, style) => DAY.test(time) && new Date(`${time.slice(0, 10)}T00:00:00Z`).toLocaleDateString([], { ...style, timeZone: "UTC" });

export class Facts {
  /** @param {(change: {attributes: object}, picture: object) => Promise<object|null>} change Resolves with the changed picture, unless another one is open by then. */
  constructor(change) {
    this.change = change;
    $("facts").addEventListener("submit", (event) => event.preventDefault());
    // Not on "change": dates change with every digit of the year.
    $("facts").addEventListener("focusout", ({ target }) => this.send(target));
    $("facts").addEventListener("keydown", ({ key, target }) => key === "Enter" && this.send(target));
  }

  show({ attributes = {} }, picture) {
    this.picture = picture;
    this.attributes = { [TAKEN]: "", ...attributes };
    const named = Object.entries(this.attributes).sort(([a], [b]) => rank(a) - rank(b));
    $("facts").replaceChildren(...named.map(([name, value]) => h("div.fact", {}, h("label", {}, h("span", { dir: "auto" }, NAMES[name] ?? name), this.field(name, value)), name === "place" && link(value))));
  }

  field(name, value) {
    const isTime = name === TAKEN && (!value || DAY.test(value) && value[10] === "T");
    const readOnly = document.body.dataset.lacks?.includes("write") ?? false;
    const shown = isTime ? { type: "datetime-local", step: 1, value: value.slice(0, LENGTH) } : { value, dir: "auto", maxLength: 4096 };
    return h("input", { name, readOnly, autocomplete: "off", ...shown });
  }

  /** Takes a change over, or what was there before back. An emptied field takes the fact away. */
  async send(field) {
    const { picture } = this;
    const before = this.attributes[field.name];
    if (before === undefined || shown(field, before) === field.value) return;
    const value = field.type === "datetime-local" && field.value ? field.value.padEnd(LENGTH, ":00") + before.slice(LENGTH) : field.value.trim();
    this.attributes[field.name] = value;
    try {
      const image = await this.change({ attributes: { [field.name]: value || null } }, picture);
      if (image) this.attributes = { [TAKEN]: "", ...image.attributes };
    } catch (error) {
      toast(error.message);
      if (picture === this.picture) this.show({ attributes: { ...this.attributes, [field.name]: before } }, picture);
    }
  }
}

/** A value as its field has it: browsers leave out seconds that are 0. */
const shown = ({ type }, value) => (type === "datetime-local" ? value.slice(0, LENGTH).replace(/(:\d\d):00$/, "$1") : value);

const rank = (name) => [...Object.keys(NAMES), name].indexOf(name);

/** To a map, for a latitude and a longitude. */
function link(place) {
  const [latitude, longitude] = place.split(",").map(Number);
  if (!Number.isFinite(latitude) || !Number.isFinite(longitude)) return null;
  const href = `https://www.openstreetmap.org/?mlat=${latitude}&mlon=${longitude}#map=14/${latitude}/${longitude}`;
  return h("a.round", { href, target: "_blank", rel: "noreferrer", title: "Show on OpenStreetMap", "aria-label": "Show the place on OpenStreetMap" }, icon("right"));
}
