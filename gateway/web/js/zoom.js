/** Zooming into the open picture and moving it: wheel, pinch, middle button or Space with dragging, keys and buttons. */

import { $ } from "./dom.js";

const MOST = 16;
const STEP = 1.5;

export class Zoom {
  scale = 1;
  left = 0; // of the picture's frame, in pixels of the stage
  top = 0;
  fingers = new Map(); // pointer id -> where it is

  /**
   * @param {HTMLElement} stage
   * @param {HTMLElement[]} layers What is zoomed: they fill the stage.
   * @param {() => void} changed
   */
  constructor(stage, layers, changed) {
    this.stage = stage;
    this.layers = layers;
    this.changed = changed;
    stage.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    for (const kind of ["pointerdown", "pointermove", "pointerup", "pointercancel"]) stage.addEventListener(kind, (event) => this.pointer(event), { capture: true });
    document.addEventListener("keydown", (event) => event.key === " " && (this.space = true), { capture: true });
    document.addEventListener("keyup", (event) => event.key === " " && (this.space = false), { capture: true });
    window.addEventListener("blur", () => (this.space = false));
    $("zoom-in").addEventListener("click", () => this.by(STEP));
    $("zoom-out").addEventListener("click", () => this.by(1 / STEP));
    $("zoom-fit").addEventListener("click", () => this.reset());
  }

  reset() {
    this.to(1, 0, 0);
  }

  /** Zooms around a place of the stage, by default its middle. */
  by(factor, x = this.stage.clientWidth / 2, y = this.stage.clientHeight / 2) {
    const scale = Math.min(Math.max(this.scale * factor, 1), MOST);
    const ratio = scale / this.scale;
    this.to(scale, x - (x - this.left) * ratio, y - (y - this.top) * ratio);
  }

  to(scale, left, top) {
    const { clientWidth, clientHeight } = this.stage;
    const inside = (value, size) => Math.min(0, Math.max(value, size * (1 - scale))); // no edge of the frame comes into the stage
    Object.assign(this, { scale, left: inside(left, clientWidth), top: inside(top, clientHeight) });
    for (const { style } of this.layers) {
      style.width = style.height = `${100 * scale}%`;
      style.left = `${this.left}px`;
      style.top = `${this.top}px`;
    }
    $("zoom-in").disabled = scale >= MOST;
    $("zoom-out").disabled = $("zoom-fit").disabled = scale <= 1;
    $("zoom-level").textContent = `${Math.round(scale * 100)} %`;
    this.changed();
  }

  /** Where an event is in the stage. */
  place({ clientX, clientY }) {
    const { left, top } = this.stage.getBoundingClientRect();
    return { x: clientX - left, y: clientY - top };
  }

  wheel(event) {
    event.preventDefault();
    const { x, y } = this.place(event);
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
    this.by(Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.002)), x, y); // with Ctrl: a pinch on a trackpad
  }

  /** Two fingers, the middle button, or Space and the left one: the stage does not see these. */
  pointer(event) {
    const { fingers } = this;
    const here = this.place(event);
    if (event.type === "pointerdown" && (event.button === 1 || this.space || (event.pointerType === "touch" && fingers.size))) this.moves = true;
    const before = fingers.get(event.pointerId);
    if (event.type === "pointerdown") fingers.set(event.pointerId, here);
    else if (event.type !== "pointermove") fingers.delete(event.pointerId);
    else if (before) fingers.set(event.pointerId, here);
    if (!this.moves) return;
    if (event.type !== "pointerdown" || event.button === 1 || this.space) event.stopPropagation(); // a second finger ends what the first began
    if (event.type === "pointerdown") this.stage.setPointerCapture(event.pointerId);
    if (event.type === "pointermove" && before) this.dragged(event.pointerId, before, here);
    if (!fingers.size) this.moves = false;
  }

  dragged(id, before, here) {
    const other = [...this.fingers].find(([one]) => one !== id)?.[1];
    this.to(this.scale, this.left + (here.x - before.x) / (other ? 2 : 1), this.top + (here.y - before.y) / (other ? 2 : 1));
    if (!other) return;
    const apart = (one) => Math.max(1, Math.hypot(one.x - other.x, one.y - other.y));
    this.by(apart(here) / apart(before), (here.x + other.x) / 2, (here.y + other.y) / 2);
  }

  /** Whether a key was for this. */
  key(event) {
    if (event.key === "z") this.by(STEP);
    else if (event.key === "Z") this.by(1 / STEP);
    else if (event.key === "0") this.reset();
    else return event.key === " ";
    return true;
  }
}
