/** Pictures that are dropped on the page or pasted into it. */

import { $, toast, typing } from "./dom.js";

const PICTURE = /\.(jpe?g|png|webp|gif|bmp|tiff?)$/i;
const inDialog = () => Boolean(document.querySelector("dialog[open]"));
const isPicture = (file) => file.type.startsWith("image/") || PICTURE.test(file.name);

/** @param {{searchWith: (file: File) => void, add: (files: File[]) => void}} actions */
export function acceptPictures({ searchWith, add }) {
  const veil = $("drop");
  const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

  document.addEventListener("dragenter", (event) => {
    if (carriesFiles(event)) veil.hidden = inDialog();
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) veil.hidden = true; // out of the window
  });
  document.addEventListener("pointermove", () => (veil.hidden = true)); // there are none during a drag: it was called off
  document.addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    const zone = event.target.closest?.("[data-drop]");
    for (const one of veil.querySelectorAll("[data-drop]")) one.classList.toggle("over", one === zone);
  });
  document.addEventListener("drop", async (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault(); // also over a dialog: else the browser would leave the page for the picture
    veil.hidden = true;
    if (inDialog()) return toast("Close this first, then drop pictures.");
    const target = event.target.closest?.("[data-drop]")?.dataset.drop ?? (event.target.closest?.("#search") ? "search" : "add");
    const files = await dropped(event.dataTransfer);
    if (!files.length) return toast("There is no picture in what was dropped.");
    if (target === "search") searchWith(files[0]);
    else add(files);
  });
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find(isPicture);
    if (!file || (typing(event) && event.clipboardData.getData("text/plain"))) return; // cells of a table come as both
    event.preventDefault();
    searchWith(file);
  });
}

/** All pictures of a drop, those in folders too; what the system does not let us read is left out. */
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files].filter(isPicture);
  return (await walkAll(entries)).filter(isPicture);
}

const walkAll = async (entries) => (await Promise.all(entries.map((entry) => walk(entry).catch(() => [])))).flat();

async function walk(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  for (;;) { // a reader gives its entries in portions
    const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!part.length) return found;
    found.push(...(await walkAll(part)));
  }
}
