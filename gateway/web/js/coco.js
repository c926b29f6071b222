/** COCO documents of several pictures as one. */

const AT_ONCE = 4; // requests

/**
 * Asks for the document of each picture and joins them; images and annotations are numbered anew.
 * @param {string[]} ids
 * @param {(id: string) => Promise<object>} ask
 */
export async function joined(ids, ask) {
  const whole = { info: {}, images: [], categories: [], annotations: [] };
  for (let start = 0; start < ids.length; start += AT_ONCE) {
    for (const { info, images, categories, annotations } of await Promise.all(ids.slice(start, start + AT_ONCE).map(ask))) {
      Object.assign(whole, { info, categories }); // the same in all
      const numbers = new Map(images.map((image, i) => [image.id, whole.images.length + i + 1]));
      whole.images.push(...images.map((image) => ({ ...image, id: numbers.get(image.id) })));
      const before = whole.annotations.length;
      whole.annotations.push(...annotations.map((one, i) => ({ ...one, id: before + i + 1, image_id: numbers.get(one.image_id) })));
    }
  }
  return whole;
}
