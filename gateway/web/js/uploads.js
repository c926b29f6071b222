/** The queue of uploads: a few at a time, each with its stage, its end, and a way to stop or repeat it. */

import * as api from "./api.js";
import { $, announce, count, h, icon } from "./dom.js";

const AT_ONCE = 3;
const STAGES = { waiting: [0, "Waiting"], sending: [0.05, "Sending"], received: [0.1, "Received"], segmenting: [0.3, "Finding things"], embedding: [0.6, "Describing them"], storing: [0.9, "Saving"], done: [0.97, "Saving"] };

/** What to say of a file that could not be added. The server's own words are for programs. */
const FAILURES = {
  UNSUPPORTED_IMAGE: "Not a picture, or the file is damaged",
  TOO_LARGE: "The picture is too large",
  STORAGE_FULL: "The server's disk is full",
  NOT_FOUND: "The collection does not exist any more",
  PERMISSION_DENIED: "Your API key does not allow adding pictures",
  UNAUTHENTICATED: "API key required",
  MODEL_MISMATCH: "The collection was made with another model",
  OVERLOADED: "The server is busy. Try again later",
  UNAVAILABLE: "The server is not ready. Try again",
  DEADLINE_EXCEEDED: "It took too long. Try again",
};

export class Uploads {
  /** @param {{changed: (collection: string, imageId: string) => void}} actions Called when a picture was added. */
  constructor({ changed }) {
    this.changed = changed;
    this.items = [];
    this.running = 0;
    $("uploads-cancel").addEventListener("click", () => this.items.forEach((item) => this.cancel(item)));
    window.addEventListener("beforeunload", (event) => this.running && event.preventDefault()); // the browser asks
    $("uploads-retry").addEventListener("click", () => this.items.filter(isLost).forEach((item) => this.repeat(item)));
    $("uploads-fold").addEventListener("click", () => this.fold(!$("uploads-list").hidden));
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
      const item = { collection, file, stage: "waiting", ended: false, outcome: null, stop: new AbortController() };
      item.row = this.row(item);
      this.items.push(item);
      $("uploads-list").append(item.row);
    }
    announce(`${count(files.length, "picture")} in the queue`);
    $("uploads").hidden = false;
    if (this.items.length === files.length) this.fold(false);
    if (!this.running) this.begin();
    this.update();
    while (this.running < AT_ONCE && this.next()) this.run(this.next());
  }

  /** From now on the time that is left is measured. */
  begin() {
    this.began = { at: Date.now(), ended: this.items.filter((item) => item.ended).length };
  }

  /** How long the rest will take, in words; "" if that is soon, or not known yet. */
  left(ended) {
    const since = ended - this.began.ended;
    const minutes = ((this.items.length - ended) * (Date.now() - this.began.at)) / since / 60_000;
    if (since < AT_ONCE || minutes < 0.5) return "";
    return minutes < 90 ? ` · ${Math.ceil(minutes)} min left` : ` · ${Math.round(minutes / 60)} h left`;
  }

  /** Shows the title only, or the list too. */
  fold(folded) {
    $("uploads-list").hidden = folded;
    $("uploads-fold").setAttribute("aria-expanded", String(!folded));
    $("uploads-fold").setAttribute("aria-label", folded ? "Show the files" : "Hide the files");
  }

  next() {
    return this.items.find((item) => item.stage === "waiting" && !item.ended && !item.started);
  }

  async run(item) {
    item.started = true;
    this.running += 1;
    this.follow(item.row);
    try {
      const result = await api.ingest(item.collection, item.file, (stage) => this.stage(item, stage), item.stop.signal);
      if (result.outcome === "failed") this.end(item, "failed", item.file.size ? FAILURES[result.error?.code] ?? "It could not be added" : "The file is empty", result.error?.detail);
      else if (result.outcome === "duplicate") this.end(item, "duplicate", "Already here");
      else {
        this.end(item, "created", count(result.regions ?? 0, "thing") + " found");
        const image = item.row.querySelector("img.blank"); // a kind that the browser cannot show
        if (image) api.show(image, api.thumbnailUrl(item.collection, result.image_id)).then(() => image.classList.remove("blank"), () => {});
        this.changed(item.collection, result.image_id);
      }
    } catch (error) {
      if (error.name === "AbortError") this.end(item, "cancelled", "Cancelled");
      else this.end(item, "failed", FAILURES[error.code] ?? error.message, error.message);
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
    Object.assign(item, { stage: "waiting", ended: false, started: false, outcome: null, stop: new AbortController() });
    const row = this.row(item);
    item.row.replaceWith(row);
    free(item.row);
    item.row = row;
    if (!this.running) this.begin();
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

  /** A file's end, in words; `detail` is what the server says of it. */
  end(item, outcome, words, detail = "") {
    Object.assign(item, { ended: true, outcome });
    item.row.dataset.outcome = outcome;
    item.row.title = detail;
    item.row.querySelector("progress").value = 1;
    item.row.querySelector(".status").textContent = words;
    const button = item.row.querySelector("button");
    if (isLost(item)) {
      $("uploads-list").prepend(item.row); // where it is seen
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
    $("uploads-title").textContent = busy ? `Adding ${(ended + 1).toLocaleString("en")} of ${this.items.length.toLocaleString("en")}${this.left(ended)}` : this.summary();
    $("uploads-cancel").hidden = !busy;
    $("uploads-retry").hidden = busy || this.items.filter(isLost).length < 2;
    $("uploads-close").hidden = busy;
  }

  summary() {
    const number = (outcome) => this.items.filter((item) => item.outcome === outcome).length;
    const parts = [`${count(number("created"), "picture")} added`];
    if (number("duplicate")) parts.push(`${number("duplicate")} already here`);
    if (number("cancelled")) parts.push(`${number("cancelled")} cancelled`);
    if (number("failed")) parts.push(`${number("failed")} failed`);
    return parts.join(", ");
  }

  finished() {
    announce(this.summary());
    if (this.items.some(isLost)) $("uploads-list").scrollTop = 0; // what failed stands first
  }

  /** Keeps what is being done in sight, unless the list is being looked through. */
  follow(row) {
    const list = $("uploads-list");
    if (!list.matches(":hover, :focus-within")) list.scrollTop = row.offsetTop - list.offsetTop;
  }
}

/** Whether a file was not added and can be tried again. */
const isLost = ({ outcome }) => outcome === "failed" || outcome === "cancelled";

/** Lets go of the file that a row shows; one that was never scrolled to has not loaded it. */
const free = (row) => URL.revokeObjectURL(row.querySelector("img").src);
