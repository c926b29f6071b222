/** Several phrases at once: the best thing of each in every picture, where a search answers with one thing a picture. */

import { phrases, usualLevel } from "./url.js";

/** Part of the best score that a further thing must reach; what scores less is a guess. */
export const NEAR_BEST = 0.8;

const MOST = 200; // things in the pictures of one page

/** Whether the results of a state are pictures of which each may show several phrases. */
export const mayShowSeveral = (state) => phrases(state.text).length > 1 && state.group && (state.level || usualLevel(state)) === "region";

/**
 * Gives each hit its `others`: the best things of the other phrases in the same picture.
 * @param {object[]} hits One for each picture.
 * @param {object} body The search that has found them.
 * @param {number} best The best score of the search.
 * @param {(body: object) => Promise<{hits: object[]}>} search
 */
export async function addOthers(hits, body, best, search) {
  if (!hits.length || best <= 0) return;
  const filter = { ...body.filter, image_ids: hits.map((hit) => hit.image_id) };
  const min_score = Math.max(body.min_score ?? 0, NEAR_BEST * best);
  const found = await search({ ...body, filter, min_score, group_by: null, page_size: MOST });
  for (const hit of hits) {
    const seen = new Set([hit.text_index]);
    const here = found.hits.filter((one) => one.image_id === hit.image_id); // best first
    hit.others = here.filter(({ text_index }) => !seen.has(text_index) && seen.add(text_index));
  }
}
