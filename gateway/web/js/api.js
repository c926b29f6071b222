/** The gateway's HTTP API, below the page's own address. Every failure is a `Problem`. */

import { $ } from "./dom.js";
import * as tab from "./session_store.js";

const KEY = "regionsearch.key";
const RETRIED = new Set([429, 503]);
const LONGEST_WAIT_S = 20;
const UPLOAD_RETRIES = 20;

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

let asking = null;

/** Asks for a key and resolves with whether one was given. `refused` is the one that the server did not take. */
function askForKey(refused) {
  asking ??= new Promise((resolve) => {
    const dialog = $("key");
    dialog.returnValue = "";
    dialog.showModal();
    $("key-refused").textContent = refused ? "The server does not take this key." : "";
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "yes";
      if (given) tab.remember(KEY, $("key-value").value.trim());
      asking = null;
      resolve(given);
    }, { once: true });
  });
  return asking;
}

const pause = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });

async function send(path, { key = null, headers = {}, ...options } = {}) {
  try {
    return await fetch(path, { ...options, headers: key ? { ...headers, Authorization: `Bearer ${key}` } : headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { title: "The server cannot be reached", detail: "Check that it runs and that you are online." });
  }
}

/** Waits for a part of an answer. */
async function part(promise) {
  try {
    return await promise;
  } catch (error) {
    throw error.name === "AbortError" ? error : broken();
  }
}

const broken = () => new Problem(0, { title: "The answer could not be read", detail: "The connection broke. Try again." });

/**
 * Sends a request; asks for a key when one is needed and waits when the server says how long.
 * @param {string} path
 * @param {RequestInit & {retries?: number, asks?: boolean}} options `asks` is false for the many pictures of a page:
 *   they only wait while another request asks.
 */
async function request(path, { retries = 2, asks = true, ...options } = {}) {
  const key = tab.recall(KEY);
  const response = await send(path, { ...options, key });
  if (response.ok) return response;
  if (response.status === 401 && (key !== tab.recall(KEY) || (await (asks ? askForKey(key) : asking)))) {
    return request(path, { retries, asks, ...options });
  }
  const waitS = Number(response.headers.get("Retry-After") ?? NaN);
  if (RETRIED.has(response.status) && retries > 0 && waitS <= LONGEST_WAIT_S) {
    await pause(waitS, options.signal);
    return request(path, { retries: retries - 1, asks, ...options });
  }
  throw new Problem(response.status, await response.json().catch(() => ({})));
}

const get = async (path, options) => part((await request(path, options)).json());
const post = async (path, body, signal) =>
  part((await request(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, signal })).json());

const collectionUrl = (collection) => `v1/collections/${encodeURIComponent(collection)}`;
const imageUrl = (collection, id) => `${collectionUrl(collection)}/images/${encodeURIComponent(id)}`;

/** Readiness with the state of each service; never throws for "not ready". */
export async function readiness() {
  const response = await send("readyz");
  return response.json().catch(() => ({ ready: response.ok, services: {} }));
}

/** What the key allows: scopes, and collections if only some. */
export const access = () => get("v1/access", { asks: false });
/** The models that are served now. */
export const models = () => get("v1/models", { asks: false });
export const collections = async () => (await get("v1/collections?page_size=1000")).collections;
export const createCollection = (name) => post("v1/collections", { name });
/** Whether there is certainly no collection of this name. */
export const isMissing = (name) => get(collectionUrl(name)).then(() => false, (problem) => problem.status === 404);
/** A page of pictures, newest first unless `listing` has another order; it may have a filter. */
export const images = (collection, token, signal, most = 40, listing = {}) =>
  get(`${collectionUrl(collection)}/images?${new URLSearchParams({ page_size: String(most), page_token: token, ...listing })}`, { signal });
export const image = (collection, id) => get(imageUrl(collection, id));
export const regions = (collection, id, signal) => get(`${imageUrl(collection, id)}/regions?include=mask`, { signal });
/** Changes tags, the name or attributes; resolves with the picture as it is now. */
export const changeImage = async (collection, id, change) =>
  part((await request(imageUrl(collection, id), { method: "PATCH", body: JSON.stringify(change), headers: { "Content-Type": "application/json" } })).json());
export const deleteCollection = (name) => request(collectionUrl(name), { method: "DELETE" });
export const deleteImage = (collection, id) => request(imageUrl(collection, id), { method: "DELETE" });
export const search = (collection, body, signal) => post(`${collectionUrl(collection)}/search`, body, signal);
/** Things on a plane: what is alike lies together. */
export const map = (collection, signal) => post(`${collectionUrl(collection)}/map`, {}, signal);
export const searchWithin = (body, signal) => post("v1/search-within", body, signal);
export const segment = (body, signal) => post("v1/segment", body, signal);

/** COCO documents: of the hits of a search, of a stored picture's things or one of them, of what is pointed at. */
export const cocoOfSearch = (collection, body) => post(`${collectionUrl(collection)}/search?format=coco`, body);
export const cocoOfThings = (collection, id, region = null) =>
  get(`${imageUrl(collection, id)}/regions?format=coco${region ? `&region_id=${encodeURIComponent(region)}` : ""}`);
export const cocoOfPrompt = (body) => post("v1/segment?format=coco", body);

export const thumbnailUrl = (collection, id, width = 640) => `${imageUrl(collection, id)}/thumbnail?width=${width}`;
/** A stored region alone, on a transparent ground. Its id begins with its image's. */
export const cropUrl = (collection, region) => `${imageUrl(collection, region.replace(/-r\d+$/, ""))}/regions/${encodeURIComponent(region)}/crop.png`;
/** The file of a picture, as it was added. */
export const content = async (collection, id) => part((await request(contentUrl(collection, id))).blob());
export const contentUrl = (collection, id) => `${imageUrl(collection, id)}/content`;

/** Shows a picture of the API; with a key it has to be fetched, because <img> sends none. */
export async function show(image, url, signal) {
  if (!tab.recall(KEY)) {
    image.src = url;
    return;
  }
  const blob = await part((await request(url, { signal, asks: false })).blob());
  const address = URL.createObjectURL(blob);
  const free = () => URL.revokeObjectURL(address);
  image.addEventListener("load", free, { once: true });
  image.addEventListener("error", free, { once: true });
  image.loading = "eager"; // it is here already, and kept until it is shown
  image.src = address;
}

/**
 * Adds one picture.
 * @param {(stage: string) => void} onStage Called with sending, received, segmenting, embedding, storing; and waiting.
 * @returns {Promise<object>} The file's result: outcome created, duplicate or failed.
 */
export async function ingest(collection, file, onStage, signal, retries = UPLOAD_RETRIES) {
  onStage("sending");
  const form = new FormData();
  form.append("files", file, file.path ?? file.name);
  for (const tag of file.tags ?? []) form.append("tags", tag);
  if (file.attributes) form.append("attributes", JSON.stringify(file.attributes));
  const response = await request(`${collectionUrl(collection)}/images`, {
    method: "POST", body: form, headers: { Accept: "text/event-stream" }, signal, retries,
  });
  let result = null;
  for await (const { event, data } of events(response.body)) {
    if (event === "progress") onStage(data.stage);
    if (event === "result") result = data;
  }
  if (!result) throw broken();
  const waitS = result.error?.retry_after_s; // busy, said in the middle of the answer
  if (!(waitS <= LONGEST_WAIT_S && retries > 0)) return result;
  onStage("waiting");
  await pause(waitS, signal);
  return ingest(collection, file, onStage, signal, retries - 1);
}

/** The server-sent events of a stream, as {event, data}. */
export async function* events(stream) {
  let buffer = "";
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await part(reader.read());
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
