/** Cut-outs of things. */

import { h, save } from "./dom.js";

/** Saves what a path encloses of a picture as a PNG with a transparent ground. */
export function saveCrop(element, { width, height }, path, name) {
  const [left, top, right, bottom] = boundsOf(path);
  const canvas = h("canvas", { width: right - left, height: bottom - top });
  const context = canvas.getContext("2d");
  context.translate(-left, -top);
  context.clip(new Path2D(path), "evenodd");
  context.drawImage(element, 0, 0, width, height);
  canvas.toBlob((blob) => save(blob, name), "image/png");
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
