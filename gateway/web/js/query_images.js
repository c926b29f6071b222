/** Pictures that were dropped or pasted to search with. They stay in this tab. */

import * as tab from "./session_store.js";

const LONGEST_SIDE = 1024; // the models look at less; saves the upload
const PREFIX = "regionsearch.picture.";

/** Keeps a picture and answers with its name for the address. Throws when the browser cannot read it. */
export async function keep(file) {
  const bitmap = await createImageBitmap(file); // as it is shown: EXIF orientation applied
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const name = Math.random().toString(36).slice(2, 10);
  tab.remember(PREFIX + name, canvas.toDataURL("image/jpeg", 0.92));
  return name;
}

/** The data URL of a kept picture, or null when this tab does not have it any more. */
export const recall = (name) => tab.recall(PREFIX + name);

/** The base64 part of a data URL. */
export const base64 = (url) => url.slice(url.indexOf(",") + 1);
