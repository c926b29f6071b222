/** Pictures that are dropped on the page or pasted into it. */

import { $, count, toast, typing } from "./dom.js";

const PICTURE = /\.(jpe?g|jpe|jfif|mpo|png|webp|gif|bmp|tiff?|hei[cf]|hif|avif)$/i;
/** What is not the user's in a folder: hidden files, and the folders of other programs. The command line leaves out the same. */
const FOREIGN = /^(\..*|@eadir|@recycle|@recently-snapshot|#recycle|#snapshot|__macosx|\$recycle\.bin|system volume information|lost\+found|ipod photo cache)$/i;
const inDialog = () => Boolean(document.querySelector("dialog[open]"));
const isPicture = (file) => file.type.startsWith("image/") || PICTURE.test(file.name);

/** The pictures among files, where null stands for one that is left out; says what is. */
function pictures(all) {
  const files = all.filter((file) => file && isPicture(file));
  if (!files.length) toast("There are no pictures in it.");
  else if (all.length > files.length) toast(`${count(all.length - files.length, "file")} left out: hidden, or not a picture.`);
  return files;
}

/** The pictures of a folder that was chosen; each knows its path below it. */
export const picturesOfFolder = (files) => pictures([...files].map((file) => {
  const parts = file.webkitRelativePath.split("/").slice(1);
  return parts.some((part) => FOREIGN.test(part)) ? null : Object.assign(file, { path: parts.join("/") });
}));

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
    const all = await dropped(event.dataTransfer);
    const files = pictures(all);
    if (!files.length) return;
    if (target === "search" && files.length > 1) toast(`Searching with ${files[0].name}: a search takes one picture, ${files.length} were dropped.`);
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

/** All files of a drop, those in folders too, where null stands for what is left out; what the system does not let us read is missing. */
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files];
  return walkAll(entries, (entry) => (entry.isFile || entries.length === 1 ? "" : `${entry.name}/`));
}

const walkAll = async (entries, pathOf) => (await Promise.all(entries.map((entry) => walk(entry, pathOf(entry)).catch(() => [])))).flat();

/** A file, or the files of a folder; each knows its path below the folder that was dropped. */
async function walk(entry, path) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [Object.assign(file, { path: path + file.name })];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) { // a reader gives its entries in portions
    const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!part.length) return found;
    const own = part.filter((one) => !FOREIGN.test(one.name));
    found.push(...Array(part.length - own.length).fill(null));
    found.push(...(await walkAll(own, (one) => (one.isFile ? path : `${path}${one.name}/`))));
  }
}
