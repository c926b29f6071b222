/** Undoing a deletion: for a few seconds the page keeps the files, and can add them again with their tags and facts. */

import * as api from "./api.js";
import { toast } from "./dom.js";

const MOST = 40; // pictures; of more the deletion is final
const MOST_BYTES = 200_000_000;
const SECONDS = 12;

/** What the question before the deletion of so many pictures says of it. */
export const outlook = (size) => (size > MOST || !mayAdd() ? "This cannot be undone." : "You can undo this for a few seconds.");

const mayAdd = () => !document.body.dataset.lacks?.includes("write");

/**
 * Fetches what is about to be deleted.
 * @returns {Promise<Map<string, File>>} By picture; empty if there is too much of it, or the key does not allow adding.
 */
export async function keepFiles(collection, ids) {
  const kept = new Map();
  if (ids.length > MOST || !mayAdd()) return kept;
  let bytes = 0;
  for (const id of ids) {
    try {
      const { name, tags, attributes, size_bytes } = await api.image(collection, id);
      if ((bytes += size_bytes) > MOST_BYTES) return new Map();
      const file = new File([await api.content(collection, id)], name || "picture");
      kept.set(id, Object.assign(file, { path: name, tags, attributes }));
    } catch {
      // it cannot be had, so it cannot be brought back
    }
  }
  return kept;
}

/** Says that pictures were deleted, with a button that brings back those whose files were kept. */
export function sayDeleted(text, collection, kept, done) {
  const files = done.map((id) => kept.get(id)).filter(Boolean);
  const click = () => document.dispatchEvent(new CustomEvent("restore", { detail: { collection, files } }));
  toast(text, files.length ? { label: "Undo", click, seconds: SECONDS } : null);
}
