/** The first seconds: models load. The page says what it waits for and goes on by itself. */

import * as api from "./api.js";
import { $, h } from "./dom.js";

const POLL_MS = 1500;

/** Resolves when the gateway can do its work; until then the notice tells why it cannot. */
export async function whenReady() {
  for (;;) {
    const found = await api.readiness().catch((problem) => ({ problem }));
    if (found.ready) break;
    tell(found);
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
  $("notice").hidden = true;
}

/** A service that is still starting is not reachable; how it is not reachable helps nobody (it stands in the title). */
const words = (detail) => (!detail || detail.includes("does not answer") ? "starting" : detail);

function tell({ problem, services = {} }) {
  const lines = Object.entries(services).map(([name, { ready, detail }]) =>
    h("li", { data: { ready: String(ready) } }, h("b", {}, name), h("span", { title: detail }, ready ? "ready" : words(detail))));
  const notice = $("notice");
  const title = problem ? problem.title : "Starting";
  const text = problem ? `${problem.message} Trying again…` : "The models are being loaded. This page continues automatically.";
  const signature = JSON.stringify([title, text, services]);
  if (notice.dataset.signature === signature) return; // nothing new to read out
  notice.dataset.signature = signature;
  notice.className = "notice starting";
  notice.hidden = false;
  notice.replaceChildren(h("span.spinner", { "aria-hidden": "true" }), h("div", {}, h("h2", {}, title), h("p", {}, text), lines.length > 0 && h("ul.services", {}, ...lines)));
}
