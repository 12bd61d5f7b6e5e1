// Under the lanes, on the same time axis: what a rank keeps in memory by kind, and the messages under way.

import { type Layout, ticksOf } from "./layout";
import { firstAbove, type Run } from "./run";
import type { Surface } from "./surface";
import { mixed, type Theme } from "./theme";
import type { View } from "./view";
import { amount, bytes, number, time } from "./words";

export const PANEL = 130;
const TOP = 20, BOTTOM = 8, CAPACITY = 10; // the last: above what is kept, for the words of the capacity's line

/** Colours of kinds of memory, in the order in which they are stacked. */
const KINDS = ["#44BB99", "#77AADD", "#EEDD88", "#EE8866", "#BBCC33", "#FFAABB", "#99DDFF", "#AAAA00", "#C9B6E4", "#DDDDDD"];

export interface Stack {
  kinds: string[];
  columns: Float64Array[]; // by kind: at the moment of a pixel column at which most is kept
}

/** What a rank keeps in each of `count` equal parts of [from, to]: the fullest moment of each, by kind. */
export function stackOf(run: Run, rank: number, from: number, to: number, count: number): Stack {
  const fixed = run.header.memory.static[rank] ?? {};
  const kinds = [...Object.keys(fixed), ...run.levels.map((level) => level.kind)];
  const columns = kinds.map((kind) => new Float64Array(count).fill(fixed[kind] ?? 0));
  const moving = columns.slice(kinds.length - run.levels.length);
  const most = new Float64Array(count).fill(-1);
  const { slots } = run;
  const scale = count / (to - from);
  const put = (begin: number, end: number, values: "during" | "after", slot: number) => {
    let total = 0;
    for (const level of run.levels) total += level[values][slot];
    const last = Math.min(count - 1, Math.ceil((end - from) * scale) - 1);
    for (let column = Math.max(0, Math.floor((begin - from) * scale + 1e-9)); column <= last; column++) {
      if (total <= most[column]) continue;
      most[column] = total;
      run.levels.forEach((level, k) => (moving[k][column] = level[values][slot]));
    }
  };
  const end = slots.first[rank + 1];
  const first = Math.max(slots.first[rank], firstAbove(slots.end, from, slots.first[rank], end) - 1);
  for (let slot = first; slot < end && slots.start[slot] < to; slot++) {
    put(slots.start[slot], slots.end[slot], "during", slot);
    put(slots.end[slot], slot + 1 < end ? slots.start[slot + 1] : run.header.makespan, "after", slot);
  }
  return { kinds, columns };
}

/** Draws a rank's memory; returns what the legend says. */
export function drawMemory(surface: Surface, run: Run, rank: number, layout: Layout, view: View, theme: Theme): void {
  const { gutter, lanes } = layout;
  surface.rect(0, 0, layout.width, PANEL, theme.background);
  const count = Math.round(lanes);
  const stack = stackOf(run, rank, view.from, view.to, count);
  const { capacity } = run.header.memory;
  const { peak, peakBytes } = run.header.perRank[rank];
  const fixed = Object.values(run.header.memory.static[rank] ?? {}).reduce((sum, value) => sum + value, 0);
  const highest = Math.max(
    fixed + (run.header.memory.unit === "bytes" ? peakBytes : peak), capacity ?? 0,
    ...stack.columns.length ? Array.from({ length: count }, (_, c) => stack.columns.reduce((sum, part) => sum + part[c], 0)) : [0],
  ) * 1.04 || 1;
  const tall = PANEL - BOTTOM - TOP - CAPACITY;
  const y = (value: number) => PANEL - BOTTOM - (value / highest) * tall;
  const base = new Float64Array(count);
  surface.clip(gutter, 0, lanes, PANEL, () => {
    stack.kinds.forEach((_, kind) => {
      const upper: number[] = [], lower: number[] = [];
      for (let column = 0; column < count; column++) {
        const x = gutter + (column * lanes) / count;
        const right = gutter + ((column + 1) * lanes) / count;
        const [bottom, height] = [base[column], stack.columns[kind][column]];
        upper.push(x, y(bottom + height), right, y(bottom + height));
        lower.push(x, y(bottom), right, y(bottom));
        base[column] += height;
      }
      const back: number[] = [];
      for (let i = lower.length - 2; i >= 0; i -= 2) back.push(lower[i], lower[i + 1]);
      surface.area([...upper, ...back], memoryColour(kind, theme));
    });
    if (capacity !== null) {
      surface.line([gutter, y(capacity), gutter + lanes, y(capacity)], theme.critical, 1.4, 5);
      surface.text(gutter + lanes - 4, y(capacity) - 7, `a GPU's ${bytes(capacity)}`, 10, theme.critical, "right");
    }
  });
  for (const tick of ticksOf(0, highest, tall, 30)) {
    surface.line([gutter - 3, y(tick), gutter, y(tick)], theme.faint, 1);
    surface.text(gutter - 6, y(tick), run.header.memory.unit === "bytes" ? bytes(tick) : number(tick), 10, theme.faint, "right");
  }
  surface.text(gutter, 8, `Memory of rank ${rank}`, 11, theme.ink, "left", true);
  let x = gutter + 120;
  stack.kinds.forEach((kind, index) => {
    if (x + 20 + kind.length * 5.6 > gutter + lanes) return;
    surface.rect(x, 4, 9, 9, memoryColour(index, theme));
    surface.text(x + 13, 9, kind, 10, theme.faint, "left");
    x += 26 + kind.length * 5.6;
  });
}

function memoryColour(kind: number, theme: Theme): string {
  return theme.dark ? mixed(KINDS[kind % KINDS.length], theme.background, 0.8) : KINDS[kind % KINDS.length];
}

/** What a rank keeps at a time, in words. */
export function memoryTold(run: Run, rank: number, at: number): string {
  const stack = stackOf(run, rank, at, at + run.span * 1e-9, 1);
  const parts = stack.kinds.map((kind, k) => ({ kind, value: stack.columns[k][0] })).filter(({ value }) => value > 0);
  const total = parts.reduce((sum, { value }) => sum + value, 0);
  return `${amount(run, total)}: ${parts.map(({ kind, value }) => `${kind} ${amount(run, value)}`).join(", ") || "nothing"}`;
}

/** Height of the panel of links: a chart for each kind. */
export function linksHeight(run: Run): number {
  return TOP + BOTTOM + CHART * (run.header.links?.kinds.length ?? 0);
}

const CHART = 34;

/** Draws the use of each of a rank's links. */
export function drawLinks(surface: Surface, run: Run, rank: number, layout: Layout, view: View, theme: Theme): void {
  const { gutter, lanes } = layout;
  surface.rect(0, 0, layout.width, linksHeight(run), theme.background);
  if (!run.header.links) return;
  const { bins, kinds } = run.header.links;
  const messages = kinds[0].unit === "messages";
  surface.text(gutter, 8, messages ? `Messages of rank ${rank} under way` : `Links of rank ${rank}`, 11, theme.ink, "left", true);
  const above = kinds.some(({ unit, most }) => unit === "share" && most > 1.005) ? "; a transfer counts at its mean rate, so sums can pass 100%" : "";
  surface.text(gutter + lanes, 8, `averages over ${time(run.span / bins)}${above}`, 10, theme.faint, "right");
  kinds.forEach(({ name, unit, most }, index) => {
    const use = run.columns.get(`${run.header.prefix}.link.${index}`)!.subarray(rank * bins, (rank + 1) * bins);
    const base = TOP + CHART * (index + 1);
    const full = unit === "share" ? Math.max(1, most) : most;
    const height = (CHART - 8) / full;
    surface.clip(gutter, base - CHART, lanes, CHART, () => {
      const perPixel = ((view.to - view.from) / run.span) * (bins / lanes);
      for (let x = 0; x < lanes; x++) {
        const from = Math.floor((view.from / run.span) * bins + x * perPixel);
        const to = Math.max(from + 1, Math.floor((view.from / run.span) * bins + (x + 1) * perPixel));
        let sum = 0;
        for (let bin = Math.max(from, 0); bin < Math.min(to, bins); bin++) sum += use[bin];
        const tall = (sum / (to - from) / 1000) * most * height;
        if (tall > 0) surface.rect(gutter + x, base - tall, 1, tall, theme.dark ? "#d9b44a" : "#b8860b");
      }
    });
    surface.line([gutter, base, gutter + lanes, base], theme.grid, 1);
    surface.text(gutter - 6, base - 14, name.replace("_", " "), 10, theme.faint, "right");
    const words = {
      share: `up to ${Math.round(100 * full)}%`, "bytes/s": `up to ${bytes(full)}/s`, messages: `up to ${Number(full.toPrecision(2))} at once`,
    }; // what the chart's full height stands for
    if (layout.bars) surface.text(gutter + lanes + 6, base - 14, words[unit], 10, theme.faint, "left");
    else surface.text(gutter + lanes - 2, base - CHART + 6, words[unit], 9, theme.faint, "right");
  });
}
