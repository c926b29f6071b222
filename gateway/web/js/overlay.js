/** Outlines over pictures: an SVG whose user units are the picture's pixels, so that it fits at every size. */

import { svg } from "./dom.js";

/** Colours of several phrases, told apart by their labels as well. */
export const HUES = 6;

/**
 * Draws outlines over a picture of this size.
 * @param {Element} target Emptied first. Its viewBox is set.
 * @param {{width: number, height: number}} size
 * @param {{path: string, hue?: number, kind?: string}[]} shapes
 * @param {boolean} dim Whether the rest of the picture is dimmed.
 */
export function draw(target, { width, height }, shapes, dim = false) {
  target.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const all = shapes.map((shape) => shape.path).join("");
  const parts = dim && all ? [svg("path", { class: "dim", d: `M0 0H${width}V${height}H0Z${all}`, "fill-rule": "evenodd" })] : [];
  for (const { path, hue = 0, kind = "" } of shapes) {
    parts.push(svg("path", { class: `casing ${kind}`, d: path }), svg("path", { class: `line hue-${hue % HUES} ${kind}`, d: path }));
  }
  target.replaceChildren(...parts);
}

/** A new overlay. */
export const overlay = () => svg("svg", { class: "overlay", preserveAspectRatio: "xMidYMid meet", "aria-hidden": "true" });
