/** Searching inside one picture, which may hold nothing of what is looked for. */

import * as api from "./api.js";

/**
 * Scores a picture's things against phrases.
 * @returns {Promise<{regions: object[], truncated: boolean[]}>} Best first; those that are no hit have no label.
 */
export async function searchInside(picture, texts, signal) {
  const found = await api.searchWithin({ ...picture.reference, texts }, signal);
  return { ...found, regions: found.regions.map((region) => ({ ...region, label: region.is_hit ? region.label : null })) };
}
