/** Searching inside one picture, which may hold nothing of what is looked for. */

import * as api from "./api.js";
import { NEAR_BEST } from "./several_phrases.js";
import { HOME, searchBody } from "./url.js";

/** The best score of a phrase in a collection. */
async function bestScore(collection, text, signal) {
  const found = await api.search(collection, { ...searchBody({ ...HOME, text }), group_by: null, page_size: 1, include: [] }, signal);
  return found.hits[0]?.score ?? 0;
}

/**
 * Scores a picture's things against phrases. A thing is a hit when it is about as good as the best that the
 * collection has for its phrase: the best of a picture that shows no teapot is not a teapot.
 * @returns {Promise<{regions: object[], truncated: boolean[]}>} Best first; those that are no hit have no label.
 */
export async function searchInside(picture, texts, signal) {
  const [found, ...best] = await Promise.all([
    api.searchWithin({ ...picture.reference, texts, relative_cutoff: NEAR_BEST }, signal),
    ...texts.map((text) => bestScore(picture.collection, text, signal)),
  ]);
  const regions = found.regions.map((region) => {
    const is_hit = region.is_hit && region.score > 0 && region.score >= NEAR_BEST * best[region.text_index];
    return { ...region, is_hit, label: is_hit ? region.label : null };
  });
  return { ...found, regions };
}
