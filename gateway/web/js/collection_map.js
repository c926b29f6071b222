/** The map: the things of a collection as points, so that what is alike lies together; a lasso chooses some of them. */

import * as api from "./api.js";
import { $, announce, count, h } from "./dom.js";

const PATCHES = 60; // of a page
const REACH_PX = 16; // of the pointer
const DRAG_PX = 5; // less is a click
const AROUND = 24; // things that the keyboard chooses
const MARGIN_PX = 34;
const PICTURE_PX = 44; // of a point that is drawn as what it shows
const GAP_PX = 54; // between two of these
const PICTURES = 140; // of these, at most
const THUMBNAIL = 320;

export class CollectionMap {
  shown = false;
  collection = "";
  points = []; // {region_id, image_id, box, x, y, px, py}
  chosen = new Set();

  /** @param {{open: (imageId: string) => void, toggle: () => void}} on */
  constructor({ open, toggle }) {
    this.open = open;
    this.canvas = /** @type {HTMLCanvasElement} */ ($("map-canvas"));
    this.images = new Map();
    this.thumbnails = new Map(); // image id -> <img>, for points that are drawn as what they show
    const { canvas } = this;
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerleave", () => this.lasso || this.hover(null));
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointerup", (event) => this.up(event));
    canvas.addEventListener("pointercancel", () => ((this.lasso = null), this.draw()));
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => this.hover(null));
    new ResizeObserver(() => this.shown && this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.shown && this.draw());
    $("map-toggle").addEventListener("click", toggle);
    $("map-clear").addEventListener("click", () => (this.choose([]), this.focus()));
    $("patches-more").addEventListener("click", () => this.more());
  }

  /** Shows the map of a collection, or hides it; `offered` says whether there is one of what the page shows. */
  show(collection, shown, offered) {
    $("map-toggle").hidden = !offered;
    $("map-toggle").setAttribute("aria-pressed", String(shown));
    $("map").hidden = !shown;
    const same = this.shown === shown && this.collection === collection;
    Object.assign(this, { shown, collection });
    if (!same) this.load();
  }

  /** Loads again what has changed. */
  reload() {
    if (this.shown) this.load();
  }

  async load() {
    this.stop?.abort();
    if (!this.shown) return;
    const stop = (this.stop = new AbortController());
    this.place([]);
    $("map-message").textContent = "Placing the things…";
    try {
      const found = await api.map(this.collection, stop.signal);
      this.images = new Map(found.images.map((image) => [image.image_id, image]));
      this.place(found.points);
      $("map-message").textContent = found.points.length ? "" : "There is nothing in this collection yet.";
      const words = `${found.truncated ? "The newest " : ""}${count(found.points.length, "thing")} of ${count(found.images.length, "picture")}`;
      this.canvas.setAttribute("aria-label", `Map: ${words}`);
      announce(words);
    } catch (error) {
      if (!stop.signal.aborted) $("map-message").textContent = error.message;
    }
  }

  place(points) {
    this.points = points;
    this.thumbnails.clear();
    this.lasso = this.cursor = null;
    this.choose([]);
  }

  /** A picture was deleted: its things are no longer there. */
  forget(id) {
    if (!this.images.delete(id)) return;
    const chosen = [...this.chosen].filter((point) => point.image_id !== id);
    this.points = this.points.filter((point) => point.image_id !== id);
    this.cursor = null;
    this.choose(chosen);
  }

  /** What the viewer selects in a picture that was opened here. */
  hit(id) {
    const point = this.shown && this.opened?.image_id === id ? this.opened : null;
    return point && { image: this.images.get(id), region_id: point.region_id, score: null };
  }

  focus() {
    this.canvas.focus();
  }

  /** Opens the picture of a point. */
  visit(point) {
    this.opened = point;
    this.open(point.image_id);
  }

  at({ clientX, clientY }) {
    const { left, top } = this.canvas.getBoundingClientRect();
    return { x: clientX - left, y: clientY - top };
  }

  /** The point that is nearest to a place of the canvas, within reach. */
  nearest({ x, y }, reach = REACH_PX) {
    let best = null;
    for (const point of this.points) {
      const distance = Math.hypot(point.px - x, point.py - y);
      if (distance < reach) [best, reach] = [point, distance];
    }
    return best;
  }

  move(event) {
    const here = this.at(event);
    if (!this.lasso) return this.hover(this.nearest(here));
    this.lasso.push(here);
    this.hover(null);
    this.draw();
  }

  down(event) {
    if (event.button !== 0 || !event.isPrimary) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.lasso = [this.at(event)];
  }

  up(event) {
    const { lasso } = this;
    this.lasso = null;
    if (!lasso) return;
    const [start] = lasso;
    const far = lasso.some(({ x, y }) => Math.hypot(x - start.x, y - start.y) > DRAG_PX);
    const point = far ? null : this.nearest(this.at(event));
    if (point) this.visit(point);
    else this.choose(far ? this.points.filter((one) => inside(one, lasso)) : []);
    if (this.chosen.size) $("map-title").scrollIntoView({ block: "nearest" });
  }

  key(event) {
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    if (dx || dy) this.step(dx, dy);
    else if (event.key === "Enter" && this.cursor) this.visit(this.cursor);
    else if (event.key === " " && this.cursor) this.choose(this.around(this.cursor));
    else if (event.key === "Escape" && this.chosen.size) this.choose([]);
    else return;
    event.preventDefault();
  }

  /** To the nearest point in a direction: one that is far to the side counts as further away. */
  step(dx, dy) {
    const { clientWidth, clientHeight } = this.canvas;
    const from = this.cursor ?? { px: clientWidth / 2, py: clientHeight / 2 };
    let best = null;
    let least = Infinity;
    for (const point of this.points) {
      const along = (point.px - from.px) * dx + (point.py - from.py) * dy;
      const aside = Math.abs((point.px - from.px) * dy) + Math.abs((point.py - from.py) * dx);
      if (point !== from && along > 0.5 && along + 2 * aside < least) [best, least] = [point, along + 2 * aside];
    }
    if (!best) return;
    this.hover((this.cursor = best));
    announce(`A thing in ${this.images.get(best.image_id)?.name || "Untitled"}`);
  }

  around({ px, py }) {
    const distance = (point) => Math.hypot(point.px - px, point.py - py);
    return [...this.points].sort((a, b) => distance(a) - distance(b)).slice(0, AROUND);
  }

  /** Shows what a point is, next to it. */
  hover(point) {
    if (point === this.hovered) return;
    this.hovered = point;
    const card = $("map-hover");
    card.hidden = !point;
    if (point) {
      const { clientWidth, clientHeight } = this.canvas;
      card.style.setProperty("left", `${Math.min(point.px + 14, clientWidth - 140)}px`);
      card.style.setProperty("top", `${point.py > clientHeight / 2 ? point.py - 148 : point.py + 14}px`);
      card.querySelector("span").textContent = this.images.get(point.image_id)?.name || "Untitled";
      api.show(card.querySelector("img"), this.picture(point)).catch(() => {});
    }
    this.canvas.classList.toggle("over", Boolean(point));
    this.draw();
  }

  picture({ region_id, image_id }) {
    return region_id ? api.cropUrl(this.collection, region_id) : api.thumbnailUrl(this.collection, image_id, THUMBNAIL);
  }

  /** Chooses points, whose things are then shown below. */
  choose(points) {
    this.chosen = new Set(points);
    this.waiting = [...points];
    $("map-chosen").hidden = !points.length;
    $("map-title").textContent = count(points.length, "thing");
    $("patches").replaceChildren();
    if (points.length) announce(`${count(points.length, "thing")} chosen`);
    this.more();
    this.draw();
  }

  more() {
    for (const point of this.waiting.splice(0, PATCHES)) {
      const name = this.images.get(point.image_id)?.name || "Untitled";
      const picture = h("img", { alt: "", loading: "lazy", draggable: false });
      api.show(picture, this.picture(point)).catch(() => {});
      $("patches").append(h("li", {}, h("button.patch", { type: "button", title: name, "aria-label": `Thing in ${name}`, click: () => this.visit(point) }, picture)));
    }
    $("patches-more").hidden = !this.waiting.length;
  }

  draw() {
    if (!this.shown) return;
    const { canvas } = this;
    const { clientWidth: width, clientHeight: height } = canvas;
    const scale = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
    }
    const [across, down] = [width - 2 * MARGIN_PX, height - 2 * MARGIN_PX];
    for (const point of this.points) [point.px, point.py] = [MARGIN_PX + point.x * across, MARGIN_PX + point.y * down];
    const pen = canvas.getContext("2d");
    const style = getComputedStyle(canvas);
    const [ink, mark, paper] = ["--ink", "--mark", "--raised"].map((name) => style.getPropertyValue(name).trim());
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    const radius = Math.min(5, Math.max(2.2, 60 / Math.sqrt(this.points.length || 1)));
    const dot = (point, size, fill, alpha) => {
      pen.globalAlpha = alpha;
      pen.fillStyle = fill;
      pen.beginPath();
      pen.arc(point.px, point.py, size, 0, 2 * Math.PI);
      pen.fill();
    };
    for (const point of this.points) dot(point, radius, ink, 0.5);
    pen.globalAlpha = 1;
    for (const point of this.apart(across, down)) this.drawPicture(pen, point, paper);
    for (const point of this.chosen) (dot(point, radius + 2.5, ink, 1), dot(point, radius + 1, mark, 1));
    if (this.hovered) (dot(this.hovered, radius + 4, ink, 1), dot(this.hovered, radius + 2, mark, 1));
    pen.globalAlpha = 1;
    if (this.lasso?.length > 1) {
      pen.beginPath();
      for (const { x, y } of this.lasso) pen.lineTo(x, y);
      pen.closePath();
      [pen.fillStyle, pen.strokeStyle, pen.lineWidth] = [`color-mix(in srgb, ${mark} 22%, transparent)`, ink, 1.5];
      pen.setLineDash([5, 4]);
      pen.fill();
      pen.stroke();
      pen.setLineDash([]);
    }
  }

  /** Points that are far enough from each other to be drawn as what they show; the same ones at every drawing. */
  apart(across, down) {
    const key = `${across} ${down}`;
    if (this.spread?.key === key && this.spread.points === this.points) return this.spread.found;
    const found = [];
    for (const point of this.points) {
      if (found.length >= PICTURES) break;
      if (!found.some((one) => Math.hypot(one.px - point.px, one.py - point.py) < GAP_PX)) found.push(point);
    }
    this.spread = { key, points: this.points, found };
    return found;
  }

  drawPicture(pen, { image_id, box, px, py }, paper) {
    const thumbnail = this.thumbnail(image_id);
    if (!thumbnail.complete || !thumbnail.naturalWidth) return;
    const scale = thumbnail.naturalWidth / this.images.get(image_id).width;
    const [width, height] = [(box.x_max - box.x_min) * scale, (box.y_max - box.y_min) * scale];
    const fit = PICTURE_PX / Math.max(width, height);
    const [w, h] = [Math.max(6, width * fit), Math.max(6, height * fit)];
    pen.save();
    pen.beginPath();
    pen.roundRect(px - w / 2 - 1.5, py - h / 2 - 1.5, w + 3, h + 3, 8);
    pen.fillStyle = paper;
    pen.fill();
    pen.beginPath();
    pen.roundRect(px - w / 2, py - h / 2, w, h, 7);
    pen.clip();
    pen.drawImage(thumbnail, box.x_min * scale, box.y_min * scale, Math.max(1, width), Math.max(1, height), px - w / 2, py - h / 2, w, h);
    pen.restore();
  }

  thumbnail(id) {
    if (!this.thumbnails.has(id)) {
      const image = new Image();
      image.addEventListener("load", () => this.drawSoon());
      this.thumbnails.set(id, image);
      api.show(image, api.thumbnailUrl(this.collection, id, THUMBNAIL)).catch(() => {});
    }
    return this.thumbnails.get(id);
  }

  /** Draws once for all pictures that come together. */
  drawSoon() {
    this.soon ??= requestAnimationFrame(() => ((this.soon = null), this.draw()));
  }
}

/** Whether a point lies in a polygon. */
function inside({ px, py }, polygon) {
  let within = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [a, b] = [polygon[i], polygon[j]];
    if (a.y > py !== b.y > py && px < ((b.x - a.x) * (py - a.y)) / (b.y - a.y) + a.x) within = !within;
  }
  return within;
}
