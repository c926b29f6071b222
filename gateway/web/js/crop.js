/** Cut-outs of things. */

import { h } from "./dom.js";

const THUMB_PX = 72; // twice its size on the page

/** What a path encloses of a picture, as a PNG with a transparent ground. */
export function cropOf(element, { width, height }, path) {
  const [left, top, right, bottom] = boundsOf(path);
  const canvas = h("canvas", { width: right - left, height: bottom - top });
  const context = canvas.getContext("2d");
  context.translate(-left, -top);
  context.clip(new Path2D(path), "evenodd");
  context.drawImage(element, 0, 0, width, height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/** The bounds of a path made of absolute M and L commands. */
function boundsOf(path) {
  const numbers = path.match(/-?\d+(\.\d+)?/g).map(Number);
  const xs = numbers.filter((_, i) => i % 2 === 0);
  const ys = numbers.filter((_, i) => i % 2 === 1);
  const low = (values) => Math.floor(values.reduce((a, b) => Math.min(a, b)));
  const high = (values) => Math.ceil(values.reduce((a, b) => Math.max(a, b)));
  return [low(xs), low(ys), high(xs), high(ys)];
}

/** A small canvas with a thing, cut out of the picture that an element shows. */
export function cutOut(element, image, { box, path }) {
  const canvas = h("canvas", { width: THUMB_PX, height: THUMB_PX, "aria-hidden": "true" });
  const side = Math.max(box.x_max - box.x_min, box.y_max - box.y_min);
  if (!side || !element.naturalWidth) return canvas;
  const left = (box.x_min + box.x_max - side) / 2;
  const top = (box.y_min + box.y_max - side) / 2;
  const context = canvas.getContext("2d");
  context.scale(THUMB_PX / side, THUMB_PX / side);
  context.translate(-left, -top);
  context.clip(new Path2D(path), "evenodd");
  const scale = element.naturalWidth / image.width; // of the file that is shown; a thumbnail's is smaller
  const [width, height] = [box.x_max - box.x_min, box.y_max - box.y_min];
  context.drawImage(element, box.x_min * scale, box.y_min * scale, width * scale, height * scale, box.x_min, box.y_min, width, height);
  return canvas;
}
