/** Once, when somebody brings pictures of their own: the bundled models know drawings, real weights know photographs. */

import * as api from "./api.js";
import { $ } from "./dom.js";

const CLOSED = "regionsearch.weights-hint";

/** Shows the hint if the bundled models run and it was never closed in this browser. */
export async function hintAtWeights() {
  if (wasClosed()) return;
  const { embedder, segmenter } = await api.models().catch(() => ({}));
  $("weights-hint").hidden = ![embedder, segmenter].some((model) => model?.variant === "pocket");
}

$("weights-hint-close").addEventListener("click", () => {
  $("weights-hint").hidden = true;
  try {
    localStorage.setItem(CLOSED, "yes");
  } catch {
    // forbidden: it comes back with the next visit
  }
});

function wasClosed() {
  try {
    return localStorage.getItem(CLOSED) !== null;
  } catch {
    return false;
  }
}
