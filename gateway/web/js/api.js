/** The gateway's HTTP API. Every failure is a `Problem`. */

import { $ } from "./dom.js";

const KEY = "regionsearch.key";
const RETRIED = new Set([429, 503]);
const LONGEST_WAIT_S = 20;

/** A problem document (RFC 9457), or the network's failure as one with the status 0. */
export class Problem extends Error {
  constructor(status, document = {}) {
    super(document.detail || document.title || `The server answered ${status}.`);
    this.status = status;
    this.title = document.title || "Something went wrong";
    this.code = document.code || "";
    this.requestId = document.request_id || "";
    this.retryAfterS = document.retry_after_s ?? null;
  }
}

const headers = (more = {}) => {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
};

let asking = null;

function askForKey() {
  asking ??= new Promise((resolve) => {
    const dialog = $("key");
    dialog.showModal();
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(KEY, $("key-value").value.trim());
      asking = null;
      resolve();
    }, { once: true });
  });
  return asking;
}

const pause = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });

async function send(path, options = {}) {
  try {
    return await fetch(path, { ...options, headers: headers(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { title: "The server cannot be reached", detail: "Check that it runs and that you are online." });
  }
}

/** Sends a request; asks for a key when one is needed and waits when the server says how long. */
async function request(path, { retries = 2, ...options } = {}) {
  const response = await send(path, options);
  if (response.ok) return response;
  if (response.status === 401) {
    await askForKey();
    return request(path, { retries, ...options });
  }
  const waitS = Number(response.headers.get("Retry-After") ?? NaN);
  if (RETRIED.has(response.status) && retries > 0 && waitS <= LONGEST_WAIT_S) {
    await pause(waitS, options.signal);
    return request(path, { retries: retries - 1, ...options });
  }
  throw new Problem(response.status, await response.json().catch(() => ({})));
}

const get = async (path, options) => (await request(path, options)).json();
const post = async (path, body, signal) =>
  (await request(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, signal })).json();

const collectionUrl = (collection) => `/v1/collections/${encodeURIComponent(collection)}`;
const imageUrl = (collection, id) => `${collectionUrl(collection)}/images/${encodeURIComponent(id)}`;

/** Readiness with the state of each service; never throws for "not ready". */
export async function readiness() {
  const response = await send("/readyz");
  return response.json().catch(() => ({ ready: response.ok, services: {} }));
}

export const collections = async () => (await get("/v1/collections?page_size=1000")).collections;
export const images = (collection, token, signal) =>
  get(`${collectionUrl(collection)}/images?page_size=40&page_token=${encodeURIComponent(token)}`, { signal });
export const regions = (collection, id, signal) => get(`${imageUrl(collection, id)}/regions?include=mask`, { signal });
export const deleteImage = (collection, id) => request(imageUrl(collection, id), { method: "DELETE" });
export const search = (collection, body, signal) => post(`${collectionUrl(collection)}/search`, body, signal);
export const searchWithin = (body, signal) => post("/v1/search-within", body, signal);
export const segment = (body, signal) => post("/v1/segment", body, signal);

export const thumbnailUrl = (collection, id) => `${imageUrl(collection, id)}/thumbnail?width=640`;
/** A stored region alone, on a transparent ground. Its id begins with its image's. */
export const cropUrl = (collection, region) => `${imageUrl(collection, region.replace(/-r\d+$/, ""))}/regions/${encodeURIComponent(region)}/crop.png`;
export const contentUrl = (collection, id) => `${imageUrl(collection, id)}/content`;

/** Shows a picture of the API; with a key it has to be fetched, because <img> sends none. */
export async function show(image, url, signal) {
  if (!sessionStorage.getItem(KEY)) {
    image.src = url;
    return;
  }
  const blob = await (await request(url, { signal })).blob();
  const address = URL.createObjectURL(blob);
  const free = () => URL.revokeObjectURL(address);
  image.addEventListener("load", free, { once: true });
  image.addEventListener("error", free, { once: true });
  image.src = address;
}

/**
 * Adds one picture.
 * @param {(stage: string) => void} onStage Called with received, segmenting, embedding, storing.
 * @returns {Promise<object>} The file's result: outcome created, duplicate or failed.
 */
export async function ingest(collection, file, onStage, signal) {
  const form = new FormData();
  form.append("files", file, file.name);
  const response = await request(`${collectionUrl(collection)}/images`, {
    method: "POST", body: form, headers: { Accept: "text/event-stream" }, signal, retries: 20,
  });
  let result = null;
  for await (const { event, data } of events(response.body)) {
    if (event === "progress") onStage(data.stage);
    if (event === "result") result = data;
  }
  if (!result) throw new Problem(0, { title: "The upload was cut off", detail: "The server closed the connection; try again." });
  return result;
}

/** The server-sent events of a stream, as {event, data}. */
export async function* events(stream) {
  let buffer = "";
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value.replaceAll("\r\n", "\n");
    for (let end = buffer.indexOf("\n\n"); end >= 0; end = buffer.indexOf("\n\n")) {
      const lines = buffer.slice(0, end).split("\n");
      buffer = buffer.slice(end + 2);
      const value = (name) => lines.find((line) => line.startsWith(`${name}:`))?.slice(name.length + 1).trim();
      if (value("data")) yield { event: value("event") ?? "message", data: JSON.parse(value("data")) };
    }
  }
}
