/** What the viewer can show: a stored picture, or the one that is searched with. */

import * as api from "./api.js";
import { outline, Mask } from "./mask.js";
import { base64, isDrawable, recall } from "./query_images.js";

const LARGEST_THUMBNAIL = 2048;
const PLAIN = new Set(["image/jpeg", "image/png", "image/bmp"]);

/** Shows a picture of the API; resolves when it is there, or cannot be shown. */
async function load(element, url, signal) {
  const settled = new Promise((resolve) => (element.onload = element.onerror = resolve));
  await api.show(element, url, signal);
  await settled;
}

/**
 * Whether the browser shows a file as its masks were made: upright and still. None shows a TIFF, turns a WebP as
 * its EXIF says, or holds an animation; the server's own small picture is all of that.
 */
const showsAsMeant = (element, { content_type, width, height }) =>
  PLAIN.has(content_type) && element.naturalWidth === width && element.naturalHeight === height;

/** A picture of a collection, with its things. */
export class StoredPicture {
  constructor(collection, id) {
    this.collection = collection;
    this.id = id;
    this.stored = true;
  }

  /** How a request of the API names it. */
  get reference() {
    return { collection: this.collection, image_id: this.id };
  }

  /** Shows it in an element; resolves with its facts and its things, numbered from 1. */
  async open(element, signal) {
    const [{ image, regions }] = await Promise.all([
      api.regions(this.collection, this.id, signal),
      load(element, api.contentUrl(this.collection, this.id), signal),
    ]);
    if (!showsAsMeant(element, image)) await load(element, api.thumbnailUrl(this.collection, this.id, LARGEST_THUMBNAIL), signal);
    const things = regions.map((region, i) => ({ ...region, number: i + 1, path: outline(region), shape: region.mask && new Mask(region.mask) }));
    return { image, things };
  }

  /** The query for more of what is selected. */
  more({ region_id, points, drawn }) {
    return region_id ? { region: region_id } : { image: this.id, points, box: drawn };
  }
}

/** The picture that is searched with: nothing of it is stored, but one can point at a thing in it. */
export class OwnPicture {
  constructor(name) {
    this.collection = null;
    this.id = name;
    this.stored = false;
  }

  get reference() {
    return { image: base64(recall(this.id) ?? "") };
  }

  async open(element) {
    const kept = recall(this.id);
    if (!kept) throw new api.Problem(0, { detail: "This picture is no longer available. Drop or paste it again." });
    if (!isDrawable(this.id)) throw new api.Problem(0, { detail: "This browser cannot show this kind of picture. It is searched with as a whole." });
    element.src = kept;
    await element.decode();
    return { image: { name: "Your picture", width: element.naturalWidth, height: element.naturalHeight }, things: [] };
  }

  more({ points, drawn }) {
    return { picture: this.id, points, box: drawn };
  }
}
