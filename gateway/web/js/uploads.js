/** The queue of uploads: a few at a time, each with its stage, its end, and a way to stop or repeat it. */

import * as api from "./api.js";
import { $, announce, count, h, icon } from "./dom.js";

const AT_ONCE = 3;
const STAGES = { waiting: [0, "Waiting"], sending: [0.05, "Sending"], received: [0.1, "Received"], segmenting: [0.3, "Finding things"], embedding: [0.6, "Describing them"], storing: [0.9, "Saving"], done: [0.97, "Saving"] };

export class Uploads {
  /** @param {{changed: () => void}} actions Called when pictures were added. */
  constructor({ changed }) {
    this.changed = changed;
    this.items = [];
    this.running = 0;
    $("uploads-cancel").addEventListener("click", () => this.items.forEach((item) => this.cancel(item)));
    window.addEventListener("beforeunload", (event) => this.running && event.preventDefault()); // the browser asks
    $("uploads-close").addEventListener("click", () => {
      for (const { row } of this.items) free(row);
      this.items = [];
      $("uploads-list").replaceChildren();
      $("uploads").hidden = true;
    });
  }

  /** Puts files in the queue of a collection. */
  add(collection, files) {
    for (const file of files) {
      const item = { collection, file, stage: "waiting", ended: false, added: false, stop: new AbortController() };
      item.row = this.row(item);
      this.items.push(item);
      $("uploads-list").append(item.row);
    }
    announce(`${count(files.length, "picture")} in the queue`);
    $("uploads").hidden = false;
    this.update();
    while (this.running < AT_ONCE && this.next()) this.run(this.next());
  }

  next() {
    return this.items.find((item) => item.stage === "waiting" && !item.ended && !item.started);
  }

  async run(item) {
    item.started = true;
    this.running += 1;
    try {
      const result = await api.ingest(item.collection, item.file, (stage) => this.stage(item, stage), item.stop.signal);
      if (result.outcome === "failed") this.end(item, "failed", result.error?.detail ?? "It could not be added.");
      else if (result.outcome === "duplicate") this.end(item, "duplicate", "Already here");
      else this.end(item, "created", count(result.regions ?? 0, "thing") + " found");
    } catch (error) {
      if (error.name === "AbortError") this.end(item, "cancelled", "Cancelled");
      else this.end(item, "failed", error.message);
    }
    this.running -= 1;
    const next = this.next();
    if (next) this.run(next);
    else if (!this.running) this.finished();
  }

  cancel(item) {
    if (item.ended) return;
    item.stop.abort();
    if (!item.started) this.end(item, "cancelled", "Cancelled");
  }

  repeat(item) {
    Object.assign(item, { stage: "waiting", ended: false, started: false, added: false, stop: new AbortController() });
    const row = this.row(item);
    item.row.replaceWith(row);
    free(item.row);
    item.row = row;
    this.update();
    if (this.running < AT_ONCE) this.run(item);
  }

  row(item) {
    const image = h("img", { alt: "", loading: "lazy" });
    image.src = URL.createObjectURL(item.file);
    const row = h("li", {},
      image,
      h("div.upload-text", {}, h("span.name", { title: item.file.name }, item.file.name), h("span.status", {}, STAGES.waiting[1]), h("progress", { max: 1, value: 0, "aria-label": `Progress of ${item.file.name}` })),
      h("button.ghost.round.small", { type: "button", "aria-label": `Cancel ${item.file.name}`, click: () => this.cancel(item) }, icon("close")),
    );
    image.addEventListener("load", () => free(row), { once: true });
    image.addEventListener("error", () => (free(row), image.classList.add("blank")), { once: true });
    return row;
  }

  stage(item, stage) {
    if (item.ended || !STAGES[stage]) return;
    item.stage = stage;
    const [part, words] = STAGES[stage];
    item.row.querySelector("progress").value = part;
    item.row.querySelector(".status").textContent = words;
    this.update();
  }

  end(item, outcome, words) {
    item.ended = true;
    item.added = outcome === "created";
    item.row.dataset.outcome = outcome;
    item.row.querySelector("progress").value = 1;
    item.row.querySelector(".status").textContent = words;
    const button = item.row.querySelector("button");
    if (outcome === "failed" || outcome === "cancelled") {
      const again = h("button.ghost.round.small", { type: "button", "aria-label": `Try ${item.file.name} again`, click: () => this.repeat(item) }, icon("retry"));
      button.replaceWith(again);
    } else button.replaceWith(outcome === "created" ? icon("check") : icon("minus"));
    this.update();
  }

  update() {
    const ended = this.items.filter((item) => item.ended).length;
    const parts = this.items.map((item) => (item.ended ? 1 : STAGES[item.stage][0]));
    $("uploads-progress").value = parts.reduce((sum, part) => sum + part, 0) / Math.max(1, this.items.length);
    const busy = ended < this.items.length;
    $("uploads-title").textContent = busy ? `Adding ${ended + 1} of ${this.items.length}` : this.summary();
    $("uploads-cancel").hidden = !busy;
    $("uploads-close").hidden = busy;
  }

  summary() {
    const number = (outcome) => this.items.filter((item) => item.row.dataset.outcome === outcome).length;
    const parts = [`${count(number("created"), "picture")} added`];
    if (number("duplicate")) parts.push(`${number("duplicate")} already here`);
    if (number("failed")) parts.push(`${number("failed")} failed`);
    return parts.join(", ");
  }

  finished() {
    announce(this.summary());
    if (this.items.some((item) => item.added)) this.changed();
  }
}

/** Lets go of the file that a row shows; one that was never scrolled to has not loaded it. */
const free = (row) => URL.revokeObjectURL(row.querySelector("img").src);
