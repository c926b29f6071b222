/** What lasts as long as this tab: across reloads too, where the browser lets a page keep anything. */

const kept = new Map();

/** Keeps a text under a name. */
export function remember(name, value) {
  kept.set(name, value);
  try {
    sessionStorage.setItem(name, value);
  } catch {
    // full or forbidden: it lasts as long as the page
  }
}

/** The text that is kept under a name, or null. */
export function recall(name) {
  if (kept.has(name)) return kept.get(name);
  try {
    return sessionStorage.getItem(name);
  } catch {
    return null;
  }
}
