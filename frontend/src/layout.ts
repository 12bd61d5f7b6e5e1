// Where things lie: a row a rank, rows for the streams of opened ranks, a title above each run where there are several.

import type { Run } from "./run";
import type { View } from "./view";

export interface Row {
  kind: "title" | "rank" | "stream";
  run: Run;
  rank: number;
  stream: string;
  y: number; // from the top of all rows
  height: number;
}

export interface Layout {
  rows: Row[];
  height: number; // of all rows
  width: number; // of the whole drawing
  gutter: number; // left of the lanes
  lanes: number; // width of the lanes
  bars: number; // width of the bars of where the step goes, right of them; 0 for none
  view: number; // height of the visible rows
}

const TITLE = 26, STREAM = 30, AXIS = 26, MOST = 44, LEAST = 7, OPEN = 40;

export { AXIS };

export function layoutOf(runs: Run[], view: View, width: number, most: number): Layout {
  const titles = runs.length > 1 ? runs.length * TITLE : 0;
  const ranks = runs.reduce((sum, run) => sum + run.ranks, 0);
  const lane = Math.max(LEAST, Math.min(MOST, Math.floor((most - titles) / ranks)));
  const rows: Row[] = [];
  let y = 0;
  const add = (kind: Row["kind"], run: Run, rank: number, stream: string, height: number) => {
    rows.push({ kind, run, rank, stream, y, height });
    y += height;
  };
  for (const run of runs) {
    if (titles) add("title", run, -1, "", TITLE);
    for (let rank = 0; rank < run.ranks; rank++) {
      const open = view.open.has(`${run.index}.${rank}`);
      add("rank", run, rank, "", open ? Math.max(lane, OPEN) : lane);
      if (open) for (const stream of streamsOf(run)) add("stream", run, rank, stream, STREAM);
    }
  }
  const gutter = width < 640 ? 56 : 92;
  const bars = width < 900 ? 0 : Math.min(220, Math.round(width * 0.14));
  const lanes = Math.max(1, width - gutter - bars - (bars ? 14 : 8)); // 1 in a frame that is not shown yet
  return { rows, height: y, width, gutter, bars, lanes, view: Math.min(y, most) };
}

const streams = new WeakMap<Run, string[]>();

/** The streams of a run's ranks that something runs on, as rows. */
export function streamsOf(run: Run): string[] {
  let found = streams.get(run);
  if (!found) {
    const used = new Set<string>();
    for (const kind of run.header.operations ?? []) for (const operation of kind) operation.streams.forEach((s) => used.add(s));
    for (const other of run.header.others) if (other.word === "sync") used.add(other.stream);
    if (run.messages.count) used.add("pipeline");
    const order = ["compute", "weight-gradient", "expert-parallel", "tensor-parallel", "pipeline", "data-parallel", "host"];
    found = order.filter((stream) => used.has(stream));
    streams.set(run, found);
  }
  return found;
}

/** The row under a height from the top of all rows. */
export function rowAt(layout: Layout, y: number): Row | null {
  return layout.rows.find((row) => row.y <= y && y < row.y + row.height) ?? null;
}

/** The row of a rank. */
export function rowOf(layout: Layout, run: number, rank: number): Row | undefined {
  return layout.rows.find((row) => row.kind === "rank" && row.run.index === run && row.rank === rank);
}

/** Where a row's upper edge is drawn. */
export function topOf(view: View, row: Row): number {
  return row.y - view.top;
}

export function xOf(layout: Layout, view: View, time: number): number {
  return layout.gutter + ((time - view.from) / (view.to - view.from)) * layout.lanes;
}

export function timeAt(layout: Layout, view: View, x: number): number {
  return view.from + ((x - layout.gutter) / layout.lanes) * (view.to - view.from);
}

/** Times at round distances, not closer than `pixels`, for an axis. */
export function ticksOf(from: number, to: number, length: number, pixels = 90): number[] {
  const least = ((to - from) * pixels) / Math.max(length, 1);
  const power = 10 ** Math.floor(Math.log10(least));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= least * (1 - 1e-9))!;
  const ticks: number[] = [];
  for (let k = Math.ceil(from / step - 1e-9); k * step <= to * (1 + 1e-12); k++) ticks.push(Number((k * step).toPrecision(12)));
  return ticks;
}
