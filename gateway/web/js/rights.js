/** What the API key allows: buttons for anything else are hidden (`data-needs` in the page). */

import * as api from "./api.js";

const SCOPES = ["write", "delete", "admin"];
let known = false;

/** Asks once, as soon as there is a key where one is needed. Until then, and if it fails, everything is shown. */
export async function showRights() {
  if (known) return;
  const access = await api.access().catch(() => null);
  if (!access) return;
  known = true;
  document.body.dataset.lacks = access.scopes.includes("admin") ? "" : SCOPES.filter((scope) => !access.scopes.includes(scope)).join(" ");
}
