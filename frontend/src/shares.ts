// Level of detail: what fills each pixel column of a rank, exactly, from sums over its slots and bubbles.

import { CAUSES, firstAbove, PAIR, type Run } from "./run";

const F = 0, B = 3, OPTIMIZER = 9;

/** The bands of a column, from the bottom up, as indices of Page.words; what they leave is bubble. */
export const BANDS = [OPTIMIZER, B, 2, 1, F];

const band = new Map(BANDS.map((word, index) => [word, index]));

/** Seconds by band that a rank's slots have taken before each: (slots + ranks), one more entry a rank than slots. */
export interface Sums {
  byBand: (Float64Array | null)[];
  byCause: (Float64Array | null)[];
}

export function sumsOf(run: Run): Sums {
  const { slots, bubbles } = run;
  const present = new Set(slots.word);
  const has = (word: number) => present.has(word) || (present.has(PAIR) && (word === F || word === B));
  const byBand = BANDS.map((word) => (has(word) ? new Float64Array(slots.count + run.ranks) : null));
  for (let rank = 0; rank < run.ranks; rank++) {
    for (let slot = slots.first[rank]; slot < slots.first[rank + 1]; slot++) {
      const at = slot + rank;
      for (const sums of byBand) if (sums) sums[at + 1] = sums[at];
      const seconds = slots.end[slot] - slots.start[slot];
      const word = slots.word[slot];
      if (word === PAIR) {
        byBand[band.get(F)!]![at + 1] += seconds / 2;
        byBand[band.get(B)!]![at + 1] += seconds / 2;
      } else byBand[band.get(word)!]![at + 1] += seconds;
    }
  }
  const byCause = CAUSES.map((_, cause) => {
    const seconds = bubbles.causes[cause];
    if (!seconds.some((value) => value > 0)) return null;
    const sums = new Float64Array(bubbles.count + run.ranks);
    for (let rank = 0; rank < run.ranks; rank++) {
      for (let b = bubbles.first[rank]; b < bubbles.first[rank + 1]; b++) sums[b + rank + 1] = sums[b + rank] + seconds[b];
    }
    return sums;
  });
  return { byBand, byCause };
}

/** Shares of each of `columns` equal parts of [from, to] of a rank. */
export interface Shares {
  columns: number;
  bands: Float32Array; // (columns, BANDS.length)
  cause: Int8Array; // (columns), the main cause of its bubbles, -1 for none
}

export function sharesOf(run: Run, sums: Sums, rank: number, from: number, to: number, columns: number): Shares {
  const shares = {
    columns,
    bands: new Float32Array(columns * BANDS.length),
    cause: new Int8Array(columns).fill(-1),
  };
  const width = (to - from) / columns;
  addBands(run, sums, rank, from, width, shares);
  addCauses(run, sums, rank, from, width, shares);
  return shares;
}

function addBands(run: Run, sums: Sums, rank: number, from: number, width: number, shares: Shares): void {
  const { first, start, end, word } = run.slots;
  const last = first[rank + 1];
  const halves = [band.get(F)!, band.get(B)!];
  const begin = firstAbove(end, from, first[rank], last);
  sums.byBand.forEach((sum, k) => {
    if (!sum) return;
    let slot = begin;
    let previous = 0;
    for (let column = 0; column <= shares.columns; column++) {
      const time = from + column * width;
      while (slot < last && end[slot] <= time) slot++;
      let now = sum[slot + rank];
      if (slot < last && start[slot] < time) {
        if (word[slot] === PAIR) now += halves.includes(k) ? (time - start[slot]) / 2 : 0;
        else if (BANDS[k] === word[slot]) now += time - start[slot];
      }
      if (column > 0) shares.bands[(column - 1) * BANDS.length + k] = (now - previous) / width;
      previous = now;
    }
  });
}

function addCauses(run: Run, sums: Sums, rank: number, from: number, width: number, shares: Shares): void {
  const { first, start, end, causes } = run.bubbles;
  const last = first[rank + 1];
  const present = sums.byCause.flatMap((sum, cause) => (sum ? [{ sum, cause }] : []));
  const previous = new Float64Array(CAUSES.length);
  const now = new Float64Array(CAUSES.length);
  let bubble = firstAbove(end, from, first[rank], last);
  for (let column = 0; column <= shares.columns; column++) {
    const time = from + column * width;
    while (bubble < last && end[bubble] <= time) bubble++;
    const inside = bubble < last && start[bubble] < time;
    const part = inside ? (time - start[bubble]) / (end[bubble] - start[bubble]) : 0;
    let most = 1e-9 * width;
    for (const { sum, cause } of present) {
      now[cause] = sum[bubble + rank] + (inside ? part * causes[cause][bubble] : 0);
      if (column > 0 && now[cause] - previous[cause] > most) {
        most = now[cause] - previous[cause];
        shares.cause[column - 1] = cause;
      }
      previous[cause] = now[cause];
    }
  }
}
