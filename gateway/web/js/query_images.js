/** Pictures to search with, dropped or pasted, and cut-outs of what was pointed at. They stay in this tab. */

import * as tab from "./session_store.js";
import { HOME, write } from "./url.js";

const LONGEST_SIDE = 1024; // the models look at less; saves the upload
const PREFIX = "regionsearch.picture.";
const CUT_OUT = "regionsearch.cut.";
const FOR_THE_SERVER = /\.(hei[cf]|hif|avif|tiff?)$/i; // formats that the server reads and most browsers do not

/** Keeps a picture and answers with its name for the address. Throws when neither browser nor server can read it. */
export async function keep(file) {
  const name = Math.random().toString(36).slice(2, 10);
  tab.remember(PREFIX + name, await readable(file));
  return name;
}

/** A picture as a data URL: small if the browser can draw it, else the file itself, for the server to read. */
async function readable(file) {
  const bitmap = await createImageBitmap(file).catch((error) => {
    if (!FOR_THE_SERVER.test(file.name)) throw error;
  });
  return bitmap ? shrunk(bitmap) : dataUrl(file);
}

const dataUrl = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(file);
});

/** A bitmap (EXIF orientation is applied) as a JPEG of moderate size. */
function shrunk(bitmap) {
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas.toDataURL("image/jpeg", 0.92);
}

/** Whether the browser can show a kept picture. */
export const isDrawable = (name) => Boolean(recall(name)?.startsWith("data:image/jpeg"));

/** The example of a query as an address, so that a cut-out is found again after Back and reload. */
const exampleOf = ({ picture = "", image = "", points, box }) => write({ ...HOME, picture, image, points, box });

/** Keeps the cut-out of what a query points at. */
export const keepCutOut = (query, canvas) => tab.remember(CUT_OUT + exampleOf(query), canvas.toDataURL());

/** The cut-out of what a query points at as a data URL, or null. */
export const cutOut = (state) => tab.recall(CUT_OUT + exampleOf(state));

/** The data URL of a kept picture, or null when this tab does not have it any more. */
export const recall = (name) => tab.recall(PREFIX + name);

/** The base64 part of a data URL. */
export const base64 = (url) => url.slice(url.indexOf(",") + 1);
