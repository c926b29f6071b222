/** What the page shows, as its address: Back, reload and sharing work because nothing else holds it. */

const LEVELS = ["region", "image", "both"];

/** Nothing pointed at. */
export const NO_MARKS = Object.freeze({ points: Object.freeze([]), box: null });

/** Nothing asked: all pictures of the default collection. */
export const HOME = Object.freeze({
  collection: "default",
  text: "",        // phrases, separated by commas
  picture: "",     // name of a picture in this tab (query_images.js)
  region: "",      // a stored region: more like this
  image: "",       // a stored image; with points or box the thing there
  points: [],      // {x, y, label}
  box: null,       // {x_min, y_min, x_max, y_max}
  level: "",       // one of LEVELS, or "" for what fits the query
  group: true,
  every: false,    // only pictures that show all phrases
  min: null,
  size: "",
  tags: "",
  not: "",         // phrases that are not meant
  unlike: [],      // stored regions that are not meant
  since: "",       // the first and the last day on which a picture was taken
  until: "",
  sort: "",        // order of all pictures; one of ORDERS
  map: false,      // things as points, in the place of the pictures
  view: "",        // the open picture: its id, or MINE
  marks: NO_MARKS, // what is pointed at in the open picture
});

/** The view of the picture that is searched with. */
export const MINE = "mine";

const split = (text) => text.split(",").map((part) => part.trim()).filter(Boolean);

/** The phrases of a text field. */
export const phrases = split;

/** Reads the address. What it does not understand has its default. */
export function read(location = window.location) {
  const given = new URLSearchParams(location.search);
  const text = (name) => given.get(name) ?? "";
  return {
    ...HOME,
    collection: text("in") || HOME.collection,
    text: text("q"),
    picture: text("picture"),
    region: text("like"),
    image: text("image"),
    points: readPoints(text("at")),
    box: readBox(text("box")),
    level: LEVELS.includes(text("level")) ? text("level") : HOME.level,
    group: given.get("group") !== "0",
    every: given.get("every") === "1",
    min: given.has("min") && Number.isFinite(Number(text("min"))) ? Number(text("min")) : null,
    size: SIZES[text("size")] ? text("size") : "",
    tags: text("tags"),
    not: text("not"),
    unlike: split(text("unlike")),
    since: readDay(text("since")),
    until: readDay(text("until")),
    sort: ORDERS[text("sort")] ? text("sort") : "",
    map: given.get("map") === "1",
    view: text("view"),
    marks: { points: readPoints(text("mark")), box: readBox(text("markbox")) },
  };
}

/** The address of a state, below that of the page, which a proxy may have put anywhere; defaults are left out. */
export function write(state) {
  const given = new URLSearchParams();
  const set = (name, value) => value && given.set(name, value);
  set("in", state.collection === HOME.collection ? "" : state.collection);
  set("q", state.text);
  set("picture", state.picture);
  set("like", state.region);
  set("image", state.image);
  set("at", writePoints(state.points));
  set("box", writeBox(state.box));
  set("level", state.level);
  set("group", state.group ? "" : "0");
  set("every", state.every ? "1" : "");
  set("min", state.min === null ? "" : String(state.min));
  set("size", state.size);
  set("tags", state.tags);
  set("not", state.not);
  set("unlike", state.unlike.join(","));
  set("since", state.since);
  set("until", state.until);
  set("sort", state.sort);
  set("map", state.map ? "1" : "");
  set("view", state.view);
  set("mark", state.view && writePoints(state.marks.points));
  set("markbox", state.view && writeBox(state.marks.box));
  return given.size ? `./?${given}` : "./";
}

const readDay = (text) => (/^\d{4}-\d\d-\d\d$/.test(text) ? text : "");

const round = (value) => Math.round(value * 10) / 10;

function numbers(text, length) {
  const found = text.split(",").map(Number);
  return found.length === length && found.every(Number.isFinite) ? found : null;
}

function readPoints(text) {
  const found = text.split(";").map((point) => numbers(point, 3)).filter(Boolean);
  return found.map(([x, y, label]) => ({ x, y, label: label ? 1 : 0 }));
}

function readBox(text) {
  const [x_min, y_min, x_max, y_max] = numbers(text, 4) ?? [];
  return x_min === undefined ? null : { x_min, y_min, x_max, y_max };
}

const writePoints = (points) => points.map(({ x, y, label }) => `${round(x)},${round(y)},${label}`).join(";");
const writeBox = (box) => box && [box.x_min, box.y_min, box.x_max, box.y_max].map(round).join(",");

/** Areas in pixels, at the limits that COCO calls small, medium and large. */
export const SIZES = {
  small: { max_area: 32 * 32 },
  medium: { min_area: 32 * 32, max_area: 96 * 96 },
  large: { min_area: 96 * 96 },
};

/** Orders of all pictures, as the API names them. */
export const ORDERS = {
  "": {},
  added: { order_by: "created_at", ascending: true },
  newest: { order_by: "attributes.taken_at" },
  oldest: { order_by: "attributes.taken_at", ascending: true },
  name: { order_by: "name", ascending: true },
};

/** Whether a state asks for anything. */
export const isSearch = (state) => Boolean(split(state.text).length || state.picture || state.region || state.image);

/** Whether the query's example is a thing that is pointed at, rather than the picture as a whole. */
const pointed = (state) => Boolean(state.points.length || state.box);

/** What the example of a query is, in words; "" when there is none. */
export function exampleWords(state) {
  if (state.picture) return pointed(state) ? "the thing in your picture" : "your picture";
  if (state.region) return "this thing";
  if (state.image) return pointed(state) ? "this thing" : "this picture";
  return "";
}

/** What a search compares unless told otherwise: a whole picture with whole pictures, anything else with things. */
export const usualLevel = (state) => ((state.picture || state.image) && !state.region && !pointed(state) ? "image" : "region");

/** What in a state narrows the hits, or the list of all pictures, for the number on the button. */
export const filterCount = (state) => (isSearch(state) ? searchFilters(state) : [state.tags, state.since || state.until]).filter(Boolean).length;

const searchFilters = (state) =>
  [state.level && state.level !== usualLevel(state), !state.group, state.every && split(state.text).length > 1, state.min !== null, state.size, state.tags, state.since || state.until, state.not, state.unlike.length];

/** From the beginning of a day to the end of another one, by the clock of the place. */
const taken = ({ since, until }) => ({ ...(since && { gte: `${since}T00:00:00Z` }), ...(until && { lte: `${until}T23:59:59.999Z` }) });

/** Which pictures come into question. */
const pictureFilter = (state) => ({
  ...(state.tags && { tags: split(state.tags) }),
  ...((state.since || state.until) && { conditions: [{ attribute: "taken_at", time: taken(state) }] }),
});

/** The order and the filter of the list of all pictures, as the API has them. */
export const listing = (state) => ({ ...ORDERS[state.sort], ...(filterCount(state) && { filter: JSON.stringify(pictureFilter(state)) }) });

/** The body of a search; `picture` is the base64 of the state's picture. */
export function searchBody(state, picture) {
  const texts = split(state.text);
  const query = {};
  if (texts.length === 1) query.text = texts[0];
  if (texts.length > 1) query.texts = texts;
  if (picture) query.image = picture;
  if (state.region) query.region_id = state.region;
  if (state.image) query.image_id = state.image;
  if (state.points.length) query.points = state.points;
  if (state.box) query.box = state.box;
  const filter = { ...SIZES[state.size], ...pictureFilter(state) };
  return {
    query,
    negatives: [...split(state.not), ...state.unlike.map((region_id) => ({ region_id }))],
    level: state.level || null,
    group_by: state.group ? "image" : null,
    all_phrases: state.every && state.group && texts.length > 1,
    filter,
    min_score: state.min,
    page_size: 24,
    include: ["mask", "weak", "others"],
  };
}
