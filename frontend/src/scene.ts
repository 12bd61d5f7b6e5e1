// The drawing of the lanes: blocks, bubbles, streams, arrows, axis, and the bars of where each rank's step goes.

import type { Page } from "./data";
import { AXIS, type Layout, type Row, rowOf, ticksOf, topOf, xOf } from "./layout";
import { CAUSES, firstAbove, linksOf, PAIR, type Run } from "./run";
import { BANDS, type Shares, sharesOf, type Sums, sumsOf } from "./shares";
import { paintInside, paintStream } from "./streams";
import type { Surface } from "./surface";
import { mixed, type Theme } from "./theme";
import type { View } from "./view";
import { number, slotName, time } from "./words";

export interface Scene {
  page: Page;
  runs: Run[]; // as they are shown: simulated, or timed again
  view: View;
  layout: Layout;
  theme: Theme;
  shifts: (Float64Array | null)[]; // by run: how much later each slot starts than in the first run of the same order
}

const GAP = 2; // between lanes
const INSET = 0.14; // share of a lane above and below a bubble, so that none is taken for a block
const NUMBERED = 9; // pixels of a lane from which on its blocks carry numbers
const MOST_BLOCKS = 8000; // drawn one by one
const PER_COLUMN = 3; // slots that a column of a lane too dense for blocks holds at least
const OPENED = 150; // pixels of a slot from which on its operations are drawn inside it
const PATTERNS: Record<string, number> = { F: 0, I: 1, W: 2, B: 3, optimizer: 4 };
const MOST_ARROWS = 1500;

const sums = new WeakMap<Run, Sums>();

function sumsFor(run: Run): Sums {
  let found = sums.get(run);
  if (!found) sums.set(run, (found = sumsOf(run)));
  return found;
}

/** Draws lanes and axis; the surface's origin is the drawing's upper left corner. */
export function draw(scene: Scene, surface: Surface): void {
  const { layout, view, theme } = scene;
  const height = layout.view;
  surface.rect(0, 0, layout.width, height + AXIS, theme.background);
  const ticks = ticksOf(view.from, view.to, layout.lanes);
  const visible = layout.rows.filter((row) => row.y + row.height > view.top && row.y < view.top + height);
  const merged = tooMany(scene, visible);
  surface.clip(0, 0, layout.width, height, () => {
    for (const row of visible) if (row.kind === "rank") paintRank(scene, surface, row, merged);
  });
  surface.clip(layout.gutter, 0, layout.lanes, height, () => {
    for (const tick of ticks) {
      const x = xOf(layout, view, tick);
      if (scene.theme.dark) surface.line([x, 0, x, height], "rgba(255,255,255,0.06)", 1);
      else surface.line([x, 0, x, height], "rgba(0,0,0,0.06)", 1);
    }
    for (const row of visible) if (row.kind === "stream") paintStream(scene, surface, row);
    paintEnds(scene, surface);
    if (view.path) paintCriticalMessages(scene, surface);
    paintSelection(scene, surface);
  });
  surface.clip(0, 0, layout.width, height, () => {
    for (const row of visible) paintLabel(scene, surface, row);
  });
  paintAxis(scene, surface, ticks, height);
  if (layout.height > height) { // how much of the rows is in sight, as a scroll bar shows it
    surface.rect(layout.width - 3, (view.top / layout.height) * height, 3, (height / layout.height) * height, theme.faint);
  }
}

function paintLabel(scene: Scene, surface: Surface, row: Row): void {
  const { layout, theme, view, page } = scene;
  const y = topOf(scene.view, row) + row.height / 2;
  if (row.kind === "title") {
    surface.rect(0, y - row.height / 2, layout.width, row.height, theme.background);
    const { bubble_rate: rate } = row.run.header.figures as { bubble_rate: number };
    const [own, best] = [row.run.header.makespan, fastest(scene.runs).header];
    const later = own > best.makespan
      ? `   +${time(own - best.makespan)} (+${(100 * (own / best.makespan - 1)).toFixed(1)}%) on ${best.name}` : "";
    const text = `${row.run.header.name}   ${time(own)}, bubble ${Number((100 * rate).toFixed(2))}%${later}`;
    surface.text(4, y + 2, text, 12, theme.ink, "left", true);
  } else if (row.kind === "rank") {
    const every = Math.max(1, Math.ceil(12 / row.height));
    if (row.rank % every === 0) {
      const open = view.open.has(`${row.run.index}.${row.rank}`);
      const focus = view.focus.run === row.run.index && view.focus.rank === row.rank;
      surface.text(12, y, `${open ? "▾" : "▸"}`, Math.min(10, row.height), theme.faint, "center");
      surface.text(layout.gutter - 8, y, `Rank ${row.rank}`, Math.min(12, row.height), theme.ink, "right", focus);
    }
    if (layout.bars && !row.run.retimed) paintBar(page, surface, row, layout.width - layout.bars, topOf(scene.view, row), layout.bars - 4, theme);
  } else surface.text(layout.gutter - 8, y, row.stream, 10, theme.faint, "right");
}

/** Where a rank's step goes: computation by kind, exposed communication, bubbles by cause; they add up to the run. */
function paintBar(page: Page, surface: Surface, row: Row, x: number, y: number, width: number, theme: Theme): void {
  for (const part of barOf(page, row.run, row.rank, theme)) {
    const length = (part.seconds / row.run.span) * width;
    const height = row.height - (row.height > 12 ? 6 : 1);
    surface.rect(x, y + (row.height - height) / 2, length, height, part.colour);
    if (length > 26 && height > 11) {
      surface.text(x + length / 2, y + row.height / 2, `${Math.round((100 * part.seconds) / row.run.span)}%`, 9, part.ink, "center");
    }
    x += length;
  }
}

export interface Part {
  label: string;
  seconds: number;
  colour: string;
  ink: string;
}

export function barOf(page: Page, run: Run, rank: number, theme: Theme): Part[] {
  const { kinds, exposed, launches, causes } = run.header.perRank[rank];
  const parts: Part[] = page.words
    .filter((word) => kinds[word])
    .map((word) => ({
      label: page.palette.labels[word] ?? word, seconds: kinds[word], ink: theme.block,
      colour: word === "F&B" ? mixed(page.palette.kinds.F, page.palette.kinds.B, 0.5) : page.palette.kinds[word],
    }));
  if (exposed) parts.push({ label: "communication that nothing hides", seconds: exposed, colour: page.palette.exposed, ink: theme.block });
  if (launches) parts.push({ label: "waiting for the host to launch kernels", seconds: launches, colour: "#AAAA00", ink: theme.block });
  CAUSES.forEach((cause, index) => {
    if (causes[cause]) {
      parts.push({ label: page.palette.causeLabels[cause], seconds: causes[cause], colour: theme.causes[index], ink: theme.ink });
    }
  });
  return parts;
}

function paintAxis(scene: Scene, surface: Surface, ticks: number[], y: number): void {
  const { layout, view, theme } = scene;
  surface.line([layout.gutter, y + 0.5, layout.gutter + layout.lanes, y + 0.5], theme.faint, 1);
  const fine = view.to - view.from < 0.5;
  for (const tick of ticks) {
    const x = xOf(layout, view, tick);
    if (x < layout.gutter - 1 || x > layout.gutter + layout.lanes + 1) continue;
    surface.line([x, y, x, y + 4], theme.faint, 1);
    surface.text(x, y + 13, number(fine ? tick * 1e3 : tick), 11, theme.faint, "center");
  }
  surface.text(layout.gutter - 8, y + 13, fine ? "time (ms)" : "time (s)", 11, theme.faint, "right");
  if (layout.bars && !scene.runs.every((run) => run.retimed)) surface.text(layout.width - layout.bars, y + 13, "where the step goes", 11, theme.faint, "left");
}

// Lanes.

/** The slots of a row that are in view. */
function inView(scene: Scene, { run, rank }: Row): [number, number] {
  const { first, start, end } = run.slots;
  const from = firstAbove(end, scene.view.from, first[rank], first[rank + 1]);
  return [from, firstAbove(start, scene.view.to, from, first[rank + 1])];
}

function tooMany(scene: Scene, rows: Row[]): boolean {
  let blocks = 0;
  for (const row of rows) {
    if (row.kind !== "rank") continue;
    const [from, to] = inView(scene, row);
    blocks += to - from;
  }
  return blocks > MOST_BLOCKS;
}

function paintRank(scene: Scene, surface: Surface, row: Row, merged: boolean): void {
  const { layout, view } = scene;
  const [from, to] = inView(scene, row);
  const y = topOf(scene.view, row);
  if (merged || to - from > layout.lanes / 2) {
    paintColumns(scene, surface, row, y, (to - from) / layout.lanes);
    if (view.path) paintCriticalStrip(scene, surface, row, y, from, to);
    return;
  }
  surface.clip(layout.gutter, y, layout.lanes, row.height, () => {
    paintBubbles(scene, surface, row, y);
    paintBlocks(scene, surface, row, y, from, to);
  });
}

/** A lane as shares of pixel columns: kinds from the bottom up, and what they leave in the colour of its cause. */
function paintColumns(scene: Scene, surface: Surface, row: Row, y: number, density: number): void {
  const { layout, view, theme } = scene;
  const scale = surface.ratio;
  const across = Math.round(layout.lanes * scale);
  const step = density < 0.5 ? 1 : Math.ceil((PER_COLUMN * scale) / density);
  const columns = Math.ceil(across / step);
  const until = view.from + ((view.to - view.from) * columns * step) / across;
  const shares = sharesOf(row.run, sumsFor(row.run), row.rank, view.from, until, columns);
  const lane = row.height - (row.height > 5 ? GAP : 0);
  const above = Math.max(0, -y), below = Math.max(0, y + lane - layout.view);
  const lines = Math.round(lane * scale), skip = Math.round(above * scale), cut = Math.round(below * scale);
  if (lines - skip - cut <= 0) return;
  const pixels = surface.pixels(layout.gutter, y + above, across, lines - skip - cut);
  if (pixels) {
    fillPixels(pixels, shares, theme, { across, step, lines, skip, cut }, endOf(row.run, view.from, until, columns));
    surface.putPixels();
  } else fillRectangles(surface, shares, theme, layout.gutter, y, lane, step / scale, endOf(row.run, view.from, until, columns));
}

/** The column behind the last one that the run reaches. */
function endOf(run: Run, from: number, to: number, columns: number): number {
  return Math.min(columns, Math.max(0, Math.ceil(((run.span - from) / (to - from)) * columns - 1e-9)));
}

interface Raster {
  across: number; // pixels of a line
  step: number; // pixels of a column
  lines: number; // pixels of a lane, of which `skip` above and `cut` below are out of sight
  skip: number;
  cut: number;
}

/** Fills a lane from its lowest line up: each column's bands one above the other, then its bubbles. */
function fillPixels(pixels: Uint32Array, shares: Shares, theme: Theme, raster: Raster, end: number): void {
  const { bands, cause } = shares;
  const { across, step, lines, skip, cut } = raster;
  const size = BANDS.length;
  pixels.fill(theme.backgroundPixel);
  for (let column = 0; column < end; column++) {
    const from = column * step;
    const to = Math.min(across, from + step);
    let filled = 0;
    let line = lines - cut;
    for (let k = 0; k <= size; k++) {
      if (k < size && bands[column * size + k] === 0) continue;
      if (k < size) filled += bands[column * size + k];
      const until = k < size ? Math.max(skip, lines - Math.round(filled * lines)) : skip;
      const colour = k < size ? theme.bandPixels[k] : theme.causePixels[cause[column] < 0 ? CAUSES.length : cause[column]];
      for (; line > until; line--) {
        const left = (line - 1 - skip) * across;
        for (let x = left + from; x < left + to; x++) pixels[x] = colour;
      }
    }
  }
}

/** The same as rectangles, equal neighbours as one. */
function fillRectangles(
  surface: Surface, shares: Shares, theme: Theme, x: number, y: number, height: number, step: number, end: number,
): void {
  const { bands, cause } = shares;
  const size = BANDS.length;
  const row = (column: number) => bands.subarray(column * size, column * size + size);
  const key = (column: number) => `${Array.from(row(column), (share) => share.toFixed(3)).join()},${cause[column]}`;
  for (let from = 0; from < end; ) {
    let to = from + 1;
    while (to < end && key(to) === key(from)) to++;
    let bottom = y + height;
    const [left, width] = [x + from * step, (to - from) * step];
    for (let k = 0; k < size; k++) {
      const part = row(from)[k] * height;
      if (part > 0.01) surface.rect(left, bottom - part, width, part, theme.kinds[BANDS[k]]);
      bottom -= part;
    }
    if (bottom - y > 0.01) surface.rect(left, y, width, bottom - y, cause[from] < 0 ? theme.idle : theme.causes[cause[from]]);
    from = to;
  }
}

function paintBubbles(scene: Scene, surface: Surface, row: Row, y: number): void {
  const { layout, view, theme, page } = scene;
  const { first, start, end, main } = row.run.bubbles;
  const last = first[row.rank + 1];
  const height = row.height - GAP;
  for (let b = firstAbove(end, view.from, first[row.rank], last); b < last && start[b] < view.to; b++) {
    const from = Math.max(xOf(layout, view, start[b]), layout.gutter);
    const to = Math.min(xOf(layout, view, end[b]), layout.gutter + layout.lanes);
    const told = main[b] < CAUSES.length;
    surface.rect(from, y + height * INSET, to - from, height * (1 - 2 * INSET), told ? theme.causes[main[b]] : theme.idle);
    if (!told || height < 14) continue;
    const label = page.palette.causeLabels[CAUSES[main[b]]];
    if (to - from > label.length * 5.2 + 6) surface.text((from + to) / 2, y + height / 2, label, 10, theme.faint, "center");
  }
}

function paintBlocks(scene: Scene, surface: Surface, row: Row, y: number, from: number, to: number): void {
  const { layout, view, theme, page } = scene;
  const { slots, operations } = row.run;
  const height = row.height - GAP;
  const scale = layout.lanes / (view.to - view.from);
  const size = Math.min(11, height * 0.72);
  const numbered = height >= NUMBERED;
  const shift = view.differences ? scene.shifts[row.run.index] : null;
  const most = shift ? largest(shift) : 0;
  for (let slot = from; slot < to; slot++) {
    const x = layout.gutter + (slots.start[slot] - view.from) * scale;
    const full = (slots.end[slot] - slots.start[slot]) * scale;
    const width = full > 3 ? full - 1 : full;
    const word = slots.word[slot];
    if (operations && full > OPENED && height > 20 && operations.kind[slot] >= 0) {
      paintInside(scene, surface, row.run, slot, x, y, full, height);
    } else if (word === PAIR && !shift) {
      const pattern = view.patterns ? PATTERNS.B : 0;
      surface.rect(x, y, width, height / 2, theme.kinds[0]);
      surface.rect(x, y + height / 2, width, height / 2, theme.kinds[3], pattern);
      if (full > 5 && height > 8) surface.frame(x + 0.5, y + 0.5, width - 1, height - 1, theme.block, 0.8);
      if (numbered) paintPairNumbers(surface, row.run, slot, x, y, width, height, theme);
    } else {
      const colour = shift ? shiftColour(shift[slot], most, theme) : theme.kinds[word];
      surface.rect(x, y, width, height, colour, view.patterns && full > 3 ? PATTERNS[page.words[word]] : 0);
      if (numbered && slots.stage[slot] >= 0) paintNumber(scene, surface, row.run, slot, x, y, width, height, size);
    }
    if (view.path) {
      if (slots.critical[slot]) surface.rect(x, y + height - 3, Math.max(width, 1), 3, theme.critical);
      else surface.rect(x, y, Math.max(width, 1), height, theme.dark ? "rgba(21,24,29,0.45)" : "rgba(255,255,255,0.6)");
    }
  }
}

function paintNumber(
  scene: Scene, surface: Surface, run: Run, slot: number, x: number, y: number, width: number, height: number, size: number,
): void {
  const text = String(run.slots.microbatch[slot]);
  const [from, to] = [Math.max(x, scene.layout.gutter), Math.min(x + width, scene.layout.gutter + scene.layout.lanes)];
  const whole = slotName(scene.page, run, slot);
  if (to - from > whole.length * size * 0.6 + 26) {
    surface.text((from + to) / 2, y + height / 2 + 0.5, whole, size, scene.theme.block, "center");
  } else if (width > digits(run) * size * 0.58 + 1) {
    surface.text(x + width / 2, y + height / 2 + 0.5, text, size, scene.theme.block, "center");
  }
}

function paintPairNumbers(
  surface: Surface, run: Run, slot: number, x: number, y: number, width: number, height: number, theme: Theme,
): void {
  const size = Math.min(10.5, height * 0.42);
  const upper = String(run.slots.microbatch[slot]), lower = String(run.slots.pairMicrobatch[run.slots.pair[slot]]);
  if (size < 6.5) {
    const small = Math.min(9, height * 0.8);
    const text = `${upper} & ${lower}`;
    if (width > text.length * small * 0.6 + 2) surface.text(x + width / 2, y + height / 2 + 0.5, text, small, theme.block, "center");
    return;
  }
  if (width < digits(run) * size * 0.58 + 1) return;
  surface.text(x + width / 2, y + height * 0.27, upper, size, theme.block, "center");
  surface.text(x + width / 2, y + height * 0.76, lower, size, theme.block, "center");
}

/** Of the largest micro-batch, so that all numbers of a run appear at once. */
function digits(run: Run): number {
  return String(run.header.microbatches - 1).length;
}

function paintCriticalStrip(scene: Scene, surface: Surface, row: Row, y: number, from: number, to: number): void {
  const { layout, view, theme } = scene;
  const { slots } = row.run;
  let last = -1;
  for (let slot = from; slot < to; slot++) {
    if (!slots.critical[slot]) continue;
    const x = Math.max(xOf(layout, view, slots.start[slot]), layout.gutter, last);
    const until = Math.min(Math.max(xOf(layout, view, slots.end[slot]), x + 0.5), layout.gutter + layout.lanes);
    if (until > x) surface.rect(x, y + row.height - GAP - 2, until - x, 2, theme.critical);
    last = until;
  }
}

// Differences between runs of one order.

function largest(values: Float64Array): number {
  let most = 0;
  for (const value of values) most = Math.max(most, Math.abs(value));
  return most;
}

export const LATER = "#d6604d", EARLIER = "#4393c3";

/** Red where a slot starts later than in the first run, blue where earlier. */
function shiftColour(shift: number, most: number, theme: Theme): string {
  const share = most > 0 ? Math.min(1, Math.abs(shift) / most) : 0;
  return mixed(shift > 0 ? LATER : EARLIER, theme.dark ? "#9aa0a8" : "#eeeeee", Math.round(share * 20) / 20);
}

// What lies over the lanes.

function fastest(runs: Run[]): Run {
  return runs.reduce((best, run) => (run.header.makespan < best.header.makespan ? run : best));
}

/** The end of each run, and where the first to end is there. */
function paintEnds(scene: Scene, surface: Surface): void {
  const { layout, view, theme, runs } = scene;
  if (runs.length < 2) return;
  const best = fastest(runs).header.makespan;
  for (const run of runs) {
    const rows = layout.rows.filter((row) => row.run === run && row.kind !== "title");
    const [from, to] = [rows[0].y - view.top, rows.at(-1)!.y + rows.at(-1)!.height - view.top];
    const x = xOf(layout, view, run.header.makespan);
    surface.line([x, from, x, to], theme.ink, 1.2);
    if (run.header.makespan > best) {
      const first = xOf(layout, view, best);
      surface.line([first, from, first, to], theme.faint, 1, 4);
    }
  }
}

function paintCriticalMessages(scene: Scene, surface: Surface): void {
  const { layout, view, theme } = scene;
  for (const run of scene.runs) {
    const { messages, slots } = run;
    let drawn = 0;
    for (let m = 0; m < messages.count && drawn < MOST_ARROWS; m++) {
      if (!messages.critical[m] || messages.end[m] < view.from || messages.start[m] > view.to) continue;
      const from = rowOf(layout, run.index, slots.rank[messages.maker[m]])!;
      const to = rowOf(layout, run.index, slots.rank[messages.taker[m]])!;
      surface.line(
        [xOf(layout, view, messages.start[m]), topOf(scene.view, from) + from.height / 2, xOf(layout, view, messages.end[m]), topOf(scene.view, to) + to.height / 2],
        theme.critical, 1.3,
      );
      drawn++;
    }
  }
}

function paintSelection(scene: Scene, surface: Surface): void {
  const { layout, view, theme } = scene;
  const { selected } = view;
  if (!selected) return;
  const run = scene.runs[selected.run];
  const { start, end, rank } = selected.what === "slot" ? run.slots : run.bubbles;
  const row = rowOf(layout, run.index, rank[selected.index])!;
  const [x, to] = [start, end].map((times) => xOf(layout, view, times[selected.index]));
  surface.frame(x - 0.5, topOf(scene.view, row) - 0.5, Math.max(to - x, 2) + 1, row.height - GAP + 1, theme.accent, 2.4);
  const slot = selected.what === "slot" ? selected.index : run.bubbles.at[selected.index];
  if (slot < run.slots.count) paintArrows(scene, surface, run, slot, selected.what === "slot");
}

/** Arrows of what a slot takes, and of what it makes. */
function paintArrows(scene: Scene, surface: Surface, run: Run, slot: number, both: boolean): void {
  const { layout, view, theme } = scene;
  const links = linksOf(run);
  const middle = (at: number) => {
    const row = rowOf(layout, run.index, run.slots.rank[at])!;
    return topOf(scene.view, row) + row.height / 2;
  };
  const arrow = (from: number, to: number, leaves: number, arrives: number) =>
    surface.curve([xOf(layout, view, leaves), middle(from)], [xOf(layout, view, arrives), middle(to)], theme.accent, 1.6);
  const messages = (group: typeof links.in) => group.items.subarray(group.start[slot], group.start[slot + 1]);
  for (const m of messages(links.in)) arrow(run.messages.maker[m], slot, run.messages.start[m], run.slots.start[slot]);
  if (!both) return;
  for (const m of messages(links.out)) {
    const taker = run.messages.taker[m];
    arrow(slot, taker, run.messages.start[m], run.slots.start[taker]);
  }
  for (let k = 0; k < links.innerSource.length; k++) {
    const [from, to] = [links.innerSource[k], links.innerTarget[k]];
    if (from === slot || to === slot) arrow(from, to, run.slots.end[from], run.slots.start[to]);
  }
}
