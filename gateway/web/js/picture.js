/** What the viewer can show: a stored picture, or the one that is searched with. */

import * as api from "./api.js";
import { outline, Mask } from "./mask.js";
import { base64, recall } from "./pictures.js";

/** A picture of a collection, with its things. */
export class StoredPicture {
  constructor(collection, id) {
    Object.assign(this, { collection, id, stored: true });
  }

  /** How a request of the API names it. */
  get reference() {
    return { collection: this.collection, image_id: this.id };
  }

  /** Shows the file; its thumbnail when the browser cannot (TIFF). */
  async show(element, signal) {
    const loaded = () => new Promise((resolve, reject) => ((element.onload = resolve), (element.onerror = reject)));
    const first = loaded();
    await api.show(element, api.contentUrl(this.collection, this.id), signal);
    try {
      await first;
    } catch {
      const second = loaded();
      await api.show(element, api.thumbnailUrl(this.collection, this.id), signal);
      await second.catch(() => {});
    }
  }

  /** Its facts and its things, numbered from 1. */
  async facts(element, signal) {
    const { image, regions } = await api.regions(this.collection, this.id, signal);
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
    Object.assign(this, { id: name, stored: false });
  }

  get reference() {
    return { image: base64(recall(this.id) ?? "") };
  }

  async show(element) {
    element.src = recall(this.id) ?? "";
    await element.decode();
  }

  async facts(element) {
    return { image: { name: "Your picture", width: element.naturalWidth, height: element.naturalHeight }, things: [] };
  }

  more({ points, drawn }) {
    return { picture: this.id, points, box: drawn };
  }
}
