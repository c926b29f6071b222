/** Small helpers for building the page. The page's policy forbids inline styles and scripts; none are made here. */

const SVG = "http://www.w3.org/2000/svg";

/** The element with this id. */
export const $ = (id) => document.getElementById(id);

/**
 * Makes an element.
 * @param {string} tag Name, with classes after dots: "button.primary.small".
 * @param {object} properties Functions become listeners, `data` a dataset, names with a hyphen and `role` attributes.
 * @param {...(Node|string|number|null|false)} children Empty ones are left out.
 */
export function h(tag, properties = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (typeof value === "function") element.addEventListener(key, value);
    else if (key === "data") Object.assign(element.dataset, value);
    else if (key.includes("-") || key === "role") element.setAttribute(key, value);
    else element[key] = value;
  }
  for (const child of children) if (child || child === 0) element.append(typeof child === "number" ? String(child) : child);
  return element;
}

/** Makes an SVG element with attributes. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const ICONS = new URL("../icons.svg", import.meta.url).href; // of the same version as this script

/** An icon of icons.svg. */
export const icon = (name) =>
  svg("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("use", { href: `${ICONS}#${name}` }));

/** Says something to screen readers without moving the focus. What is outside of an open dialog is silent. */
export function announce(text) {
  const live = document.querySelector("dialog[open] [aria-live]") ?? $("live");
  live.textContent = "";
  requestAnimationFrame(() => (live.textContent = text));
}

let toastTimer;

/** Shows a short message for a few seconds, above dialogs too; `action` is a button in it, {label, click, seconds}. */
export function toast(text, action = null) {
  const element = $("toast");
  element.replaceChildren(text, action ? h("button.small", { type: "button", click: () => (end(), action.click()) }, action.label) : "");
  element.hidePopover();
  element.showPopover(); // again, so that it stands above a dialog that was opened since
  announce(text);
  clearTimeout(toastTimer);
  const end = () => (element.hidePopover(), element.querySelector("button")?.remove());
  toastTimer = setTimeout(end, 1000 * (action?.seconds ?? 4.5));
}

/** "1 picture", "2 pictures". */
export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

/** A file name without its folders and its ending. */
export const stem = (name) => (name || "picture").replace(/^.*\//, "").replace(/\.[^.]*$/, "");

/** Whether the user is typing, so that letters are not shortcuts. */
export const typing = (event) =>
  event.target.matches?.("textarea, select, [contenteditable], input:not([type=radio], [type=checkbox], [type=range])");

/** Hands a file to the user. */
export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Hands an object to the user as a JSON file. */
export const saveJson = (value, name) => save(new Blob([JSON.stringify(value)], { type: "application/json" }), name);

/** The same with an object that is still to come; says why if it does not. */
export const saveFrom = (promise, name) => promise.then((value) => saveJson(value, name)).catch((error) => toast(error.message));
