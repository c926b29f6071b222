/** COCO documents of what is on the screen. */

const annotation = (id, imageId, category, { box, mask, area, score }) => ({
  id,
  image_id: imageId,
  category_id: category,
  bbox: [box.x_min, box.y_min, box.x_max - box.x_min, box.y_max - box.y_min],
  area: area ?? (box.x_max - box.x_min) * (box.y_max - box.y_min),
  iscrowd: mask ? 1 : 0, // run lengths are what COCO keeps for crowds
  ...(mask ? { segmentation: mask } : {}),
  ...(score === null || score === undefined ? {} : { score }),
});

/** Things of one picture. `image` has image_id, name, width and height. */
export const cocoOfImage = (image, things) => cocoOfHits(things.map((thing) => ({ ...thing, image_id: image.image_id, image })));

/** Hits of a search. */
export function cocoOfHits(hits) {
  const ids = [...new Set(hits.map((hit) => hit.image_id))];
  const names = [...new Set(hits.map((hit) => hit.label ?? "thing"))];
  return {
    images: ids.map((id, i) => {
      const { image } = hits.find((hit) => hit.image_id === id);
      return { id: i + 1, file_name: image.name, width: image.width, height: image.height, sha256: id };
    }),
    categories: names.map((name, i) => ({ id: i + 1, name })),
    annotations: hits.map((hit, i) => annotation(i + 1, ids.indexOf(hit.image_id) + 1, names.indexOf(hit.label ?? "thing") + 1, { ...(hit.best_region ?? hit), score: hit.score })),
  };
}
