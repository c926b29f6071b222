/** A picture to point at: hover, clicks, boxes and a crosshair for the keyboard. All coordinates are the picture's pixels. */

import { $, svg } from "./dom.js";
import { draw } from "./overlay.js";
import { Zoom } from "./zoom.js";

const DRAG_PX = 5; // less is a click
const NOTHING = Object.freeze({ points: [], box: null });

export class Stage {
  size = { width: 1, height: 1 };
  points = [];
  box = null;
  past = [];

  /**
   * @param {object} on
   * @param {(x: number, y: number) => ({path: string}|null)} on.hover What lies there.
   * @param {(prompt: {points: object[], box: object|null}) => void} on.prompt The points or the box have changed.
   */
  constructor(on) {
    this.on = on;
    this.element = $("stage");
    this.overlay = $("stage-overlay");
    this.zoom = new Zoom(this.element, [$("stage-image"), this.overlay], () => this.render());
    this.reset(this.size);
    const { element } = this;
    element.addEventListener("pointermove", (event) => this.move(event));
    element.addEventListener("pointerleave", () => !this.drag && this.setHover(null));
    element.addEventListener("pointerdown", (event) => this.down(event));
    element.addEventListener("pointerup", (event) => this.up(event));
    element.addEventListener("pointercancel", () => ((this.drag = null), this.render()));
    element.addEventListener("auxclick", (event) => event.preventDefault());
    element.addEventListener("keydown", (event) => this.key(event));
    element.addEventListener("blur", () => ((this.cross = null), this.render()));
    new ResizeObserver(() => this.render()).observe(element); // what has one size on the screen
    $("undo").addEventListener("click", () => this.undo());
    $("clear").addEventListener("click", () => this.clear());
  }

  /** Begins with another picture, with nothing pointed at. */
  reset(size) {
    Object.assign(this, { size, ...NOTHING, past: [], undone: [], corner: null, cross: null, drag: null, hover: null, shapes: [] });
    this.zoom.reset();
  }

  /** Shows these outlines; see overlay.js. */
  show(shapes) {
    this.shapes = shapes;
    this.render();
  }

  /** Points and box from elsewhere, such as the address; the points were the last to come. */
  set(points, box) {
    Object.assign(this, { points, box, past: [...(box ? [NOTHING] : []), ...points.map((_, n) => ({ points: points.slice(0, n), box }))], undone: [] });
    this.render();
  }

  get tool() {
    return document.querySelector("input[name=tool]:checked").value;
  }

  /** Where an event is in the picture; clamped to it. */
  at({ clientX, clientY }) {
    const point = new DOMPoint(clientX, clientY).matrixTransform(this.overlay.getScreenCTM().inverse());
    const { width, height } = this.size;
    const inside = point.x >= 0 && point.y >= 0 && point.x < width && point.y < height;
    return { x: Math.min(Math.max(point.x, 0), width - 0.01), y: Math.min(Math.max(point.y, 0), height - 0.01), inside };
  }

  move(event) {
    const here = this.at(event);
    if (this.drag) {
      const far = Math.hypot(event.clientX - this.drag.clientX, event.clientY - this.drag.clientY) > DRAG_PX;
      if (far || this.drag.to) this.drag.to = here;
      return this.render();
    }
    this.setHover(here.inside && event.pointerType !== "touch" ? here : null);
  }

  setHover(here) {
    const found = here && this.on.hover(here.x, here.y);
    if (found === this.hover) return;
    this.hover = found;
    this.render();
  }

  down(event) {
    if (!event.isPrimary) return ((this.drag = null), this.render()); // two fingers mean something else
    if (event.button !== 0) return;
    const here = this.at(event);
    if (!here.inside) return;
    this.element.setPointerCapture(event.pointerId);
    this.drag = { from: here, to: null, clientX: event.clientX, clientY: event.clientY };
  }

  up(event) {
    if (!this.drag) return;
    const { from, to } = this.drag;
    this.drag = null;
    if (to) this.setBox(from, to);
    else if (this.tool !== "box") this.add(from, event.altKey || this.tool === "remove" ? 0 : 1);
    this.render();
  }

  add({ x, y }, label) {
    this.change({ points: [...this.points, { x, y, label }] });
  }

  setBox(a, b) {
    const box = { x_min: Math.min(a.x, b.x), y_min: Math.min(a.y, b.y), x_max: Math.max(a.x, b.x), y_max: Math.max(a.y, b.y) };
    if (box.x_max - box.x_min < 1 || box.y_max - box.y_min < 1) return;
    this.change({ box });
  }

  change(part) {
    this.past.push(this.prompt);
    this.undone = [];
    Object.assign(this, part);
    this.changed();
  }

  undo() {
    this.go(this.past, this.undone);
  }

  redo() {
    this.go(this.undone, this.past);
  }

  /** Takes the last state of one stack and leaves the present one on the other. */
  go(from, to) {
    if (!from.length) return;
    to.push(this.prompt);
    Object.assign(this, from.pop());
    const { past, undone } = this;
    this.changed();
    Object.assign(this, { past, undone }); // without anything pointed at they would be forgotten
  }

  get prompt() {
    return { points: this.points, box: this.box };
  }

  clear() {
    Object.assign(this, { ...NOTHING, past: [], undone: [], corner: null });
    this.changed();
  }

  get empty() {
    return !this.points.length && !this.box;
  }

  changed() {
    this.render();
    this.on.prompt(this.prompt);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey) return;
    if (this.zoom.key(event)) return (event.preventDefault(), event.stopPropagation());
    const { width, height } = this.size;
    const step = Math.max(1, Math.min(width, height) * (event.shiftKey ? 0.1 : 0.02));
    const [dx, dy] = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key] ?? [0, 0];
    const cross = this.cross ?? { x: width / 2, y: height / 2 };
    if (dx || dy || (!this.cross && ["+", "=", "-", "b", "B"].includes(event.key))) {
      this.cross = { x: Math.min(Math.max(cross.x + dx, 0), width - 0.01), y: Math.min(Math.max(cross.y + dy, 0), height - 0.01) };
      this.setHover(this.cross);
    }
    if (event.key === "+" || event.key === "=" || event.key === "Enter") this.add(this.cross ?? cross, 1);
    else if (event.key === "-") this.add(this.cross ?? cross, 0);
    else if (event.key === "Backspace") this.undo();
    else if (event.key === "b" || event.key === "B") {
      if (this.corner) this.setBox(this.corner, this.cross);
      this.corner = this.corner ? null : this.cross;
    } else if (event.key === "Escape" && !(this.empty && !this.corner)) this.clear();
    else if (!dx && !dy) return;
    event.preventDefault();
    event.stopPropagation();
    this.render();
  }

  /** Whether a thing is outlined already: as it is, or as the model sees what was clicked. */
  outlined(thing) {
    return this.shapes.some((shape) => shape.path === thing.path) || this.points.some(({ x, y, label }) => label && this.on.hover(x, y) === thing);
  }

  render() {
    const { size, overlay } = this;
    const shapes = this.hover && !this.outlined(this.hover) ? [...this.shapes, { path: this.hover.path, kind: "hover" }] : this.shapes;
    draw(overlay, size, shapes, this.shapes.length > 0);
    const dragged = this.drag?.to ? [this.drag.from, this.drag.to] : this.corner && this.cross ? [this.corner, this.cross] : null;
    if (dragged) overlay.append(rectangle(...dragged));
    else if (this.box) overlay.append(rectangle({ x: this.box.x_min, y: this.box.y_min }, { x: this.box.x_max, y: this.box.y_max }));
    const unit = Math.max(size.width / (overlay.clientWidth || size.width), size.height / (overlay.clientHeight || size.height));
    for (const { x, y, label } of this.points) overlay.append(dot(x, y, label, unit));
    if (this.cross) overlay.append(svg("path", { class: "crosshair", d: `M0 ${this.cross.y}H${size.width}M${this.cross.x} 0V${size.height}` }));
    $("undo").disabled = $("clear").disabled = this.empty;
  }
}

const rectangle = (a, b) => svg("rect", { class: "box", x: Math.min(a.x, b.x), y: Math.min(a.y, b.y), width: Math.abs(a.x - b.x), height: Math.abs(a.y - b.y) });

/** A point with its sign, of one size on the screen. */
const dot = (x, y, label, unit) =>
  svg("g", { class: label ? "dot" : "dot minus", transform: `translate(${x} ${y}) scale(${unit})` },
    svg("circle", { r: 8 }), svg("path", { d: label ? "M-4 0H4M0-4V4" : "M-4 0H4" }));
