/**
 * Masks in the browser: COCO's compressed run lengths, read without ever making a picture of them.
 *
 * Runs go down the columns, first those outside of the mask. A pixel (x, y) has the position x * height + y.
 */

const SPECK = 0.03; // of the largest part's area

/** A mask that answers "is this pixel inside?" and draws its outline. */
export class Mask {
  cachedLoops;

  /** @param {{size: [number, number], counts: string}} rle Size is [height, width]. */
  constructor({ size: [height, width], counts }) {
    this.height = height;
    this.width = width;
    this.ends = cumulate(runLengths(counts));
  }

  /** Whether the pixel that holds this point is inside. */
  contains(x, y) {
    if (x < 0 || y < 0 || x >= this.width || y >= this.height) return false;
    const position = Math.floor(x) * this.height + Math.floor(y);
    let low = 0;
    let high = this.ends.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.ends[middle] > position) high = middle;
      else low = middle + 1;
    }
    return low % 2 === 1;
  }

  /** The outline as an SVG path in picture coordinates; "" when the mask is empty. */
  get path() {
    return this.loops.map(smooth).join("");
  }

  /** The same without specks and pinholes, which in a small picture are noise. */
  get tidyPath() {
    const areas = this.loops.map(area);
    const least = SPECK * Math.max(...areas);
    return this.loops.filter((_, i) => areas[i] >= least).map(smooth).join("");
  }

  get loops() {
    this.cachedLoops ??= loops(columns(this.ends, this.height));
    return this.cachedLoops;
  }
}

/** The run lengths of a compressed string: 5 bits a character, differences to the run before the last. */
function runLengths(counts) {
  const runs = [];
  for (let i = 0; i < counts.length; ) {
    let value = 0;
    let shift = 0;
    let code;
    do {
      code = counts.charCodeAt(i++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16 && shift < 32) value |= -1 << shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

function cumulate(runs) {
  let total = 0;
  return runs.map((run) => (total += run));
}

/** For each column that has any, its intervals [from, to) inside of the mask. */
function columns(ends, height) {
  const found = new Map();
  for (let run = 1; run < ends.length; run += 2) {
    for (let from = ends[run - 1]; from < ends[run]; ) {
      const x = Math.floor(from / height);
      const to = Math.min(ends[run], (x + 1) * height);
      const intervals = found.get(x) ?? [];
      const last = intervals.at(-1);
      if (last && last[1] === from - x * height) last[1] = to - x * height;
      else intervals.push([from - x * height, to - x * height]);
      found.set(x, intervals);
      from = to;
    }
  }
  return found;
}

/** What is in exactly one of two lists of intervals, as [from, to, whether it is in the second]. */
function difference(first, second) {
  const cuts = [...first.flat(), ...second.flat()].sort((a, b) => a - b);
  const inside = (intervals, y) => intervals.some(([from, to]) => from <= y && y < to);
  const found = [];
  for (let i = 0; i + 1 < cuts.length; i++) {
    if (cuts[i] === cuts[i + 1]) continue;
    const here = inside(second, cuts[i]);
    if (inside(first, cuts[i]) !== here) found.push([cuts[i], cuts[i + 1], here]);
  }
  return found;
}

/** The closed loops of edges between inside and outside, with the inside on the right hand. */
function loops(byColumn) {
  const next = new Map();
  const edge = (x1, y1, x2, y2) => {
    const key = `${x1},${y1}`;
    const list = next.get(key);
    if (list) list.push([x2, y2]);
    else next.set(key, [[x2, y2]]);
  };
  for (const [x, intervals] of byColumn) {
    for (const [from, to] of intervals) {
      edge(x, from, x + 1, from);
      edge(x + 1, to, x, to);
    }
    for (const [from, to] of difference(byColumn.get(x - 1) ?? [], intervals).filter(([, , here]) => here)) edge(x, to, x, from);
    for (const [from, to] of difference(intervals, byColumn.get(x + 1) ?? []).filter(([, , there]) => !there)) edge(x + 1, from, x + 1, to);
  }
  const found = [];
  for (const [key, list] of next) {
    while (list.length) {
      const start = key.split(",").map(Number);
      const loop = [start];
      for (let point = list.pop(); point[0] !== start[0] || point[1] !== start[1]; ) {
        loop.push(point);
        point = next.get(`${point[0]},${point[1]}`).pop();
      }
      found.push(straight(loop));
    }
  }
  return found;
}

/** What a loop encloses. */
const area = (loop) => Math.abs(loop.reduce((sum, [x, y], i) => {
  const [nextX, nextY] = loop[(i + 1) % loop.length];
  return sum + x * nextY - nextX * y;
}, 0)) / 2;

/** Joins edges that go on in the same direction. */
function straight(loop) {
  const n = loop.length;
  return loop.filter(([x, y], i) => {
    const before = loop[(i + n - 1) % n];
    const after = loop[(i + 1) % n];
    return (before[0] === x) !== (after[0] === x) || (before[1] === y) !== (after[1] === y);
  });
}

/**
 * A loop as a path without stairs, nowhere further than half a pixel from it.
 *
 * It goes from edge to edge through their middles; only where two long edges meet does it keep the corner, cut by half a pixel.
 */
function smooth(loop) {
  const n = loop.length;
  const edges = loop.map(([x, y], i) => {
    const [endX, endY] = loop[(i + 1) % n];
    return { x, y, endX, endY, length: Math.abs(endX - x) + Math.abs(endY - y) };
  });
  const points = edges.flatMap(({ x, y, endX, endY, length }, i) => {
    const stepX = Math.sign(endX - x) / 2;
    const stepY = Math.sign(endY - y) / 2;
    const kept = [];
    if (length > 1 && edges[(i + n - 1) % n].length > 1) kept.push(`${x + stepX} ${y + stepY}`);
    if (length > 1 && edges[(i + 1) % n].length > 1) kept.push(`${endX - stepX} ${endY - stepY}`);
    return kept.length ? kept : [`${(x + endX) / 2} ${(y + endY) / 2}`];
  });
  return `M${points.join("L")}Z`;
}

/** The path of a box {x_min, y_min, x_max, y_max}. */
const boxPath = (box) =>
  `M${box.x_min} ${box.y_min}L${box.x_max} ${box.y_min}L${box.x_max} ${box.y_max}L${box.x_min} ${box.y_max}Z`;

/** The outline of a hit or region: of its mask, or else of its box. */
export function outline({ mask, box }, { tidy = false } = {}) {
  if (!mask) return boxPath(box);
  return new Mask(mask)[tidy ? "tidyPath" : "path"] || boxPath(box);
}
