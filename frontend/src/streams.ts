// What slots consist of: operations inside a slot that is zoomed in to, and the streams of opened ranks.

import type { OperationKind, Page } from "./data";
import { type Row, topOf, xOf } from "./layout";
import { firstAbove, linksOf, type Run } from "./run";
import type { Scene } from "./scene";
import type { Surface } from "./surface";
import { mixed } from "./theme";

function familyColour(page: Page, operation: OperationKind): string {
  return page.palette.families[operation.family][operation.pass === "F" ? 0 : 1];
}

/** A slot opened in its lane: its streams one above the other, in the colours of what the operations belong to. */
export function paintInside(
  scene: Scene, surface: Surface, run: Run, slot: number, x: number, y: number, width: number, height: number,
): void {
  const { page, theme, layout } = scene;
  const operations = run.operations!;
  const kind = run.header.operations![operations.kind[slot]];
  const streams = [...new Set(kind.flatMap((operation) => operation.streams))];
  streams.sort((a, b) => Number(b === "compute") - Number(a === "compute"));
  const scale = width / (run.slots.end[slot] - run.slots.start[slot]);
  const shares = streams.map((stream) => (stream === "compute" ? 1.4 : 1));
  const total = shares.reduce((sum, share) => sum + share, 0);
  surface.rect(x, y, width - 1, height, theme.idle);
  let lane = y;
  streams.forEach((stream, index) => {
    const tall = (height * shares[index]) / total;
    for (const leg of legsOf(kind, stream, operations.start, operations.length, operations.first[slot])) {
      const from = x + leg.start * scale, to = x + leg.end * scale;
      if (to < layout.gutter || from > layout.gutter + layout.lanes) continue;
      surface.rect(from, lane, to - from, tall, familyColour(page, leg.operation), leg.operation.pass === "W" ? 1 : 0);
      const size = Math.min(10, tall * 0.8);
      const text = legNames(leg).find((name) => to - from > name.length * size * 0.56 + 2);
      if (size > 6 && text) surface.text((from + to) / 2, lane + tall / 2, text, size, theme.block, "center");
    }
    lane += tall;
  });
  surface.frame(x + 0.5, y + 0.5, width - 2, height - 1, theme.ink, 1);
}

interface Leg {
  operation: OperationKind; // its first
  count: number;
  start: number;
  end: number;
}

/** Runs of operations of one family and pass on a stream, each directly after the one before. */
function legsOf(kind: OperationKind[], stream: string, start: Float64Array, length: Float64Array, first: number): Leg[] {
  const legs: Leg[] = [];
  const mine = kind.map((operation, index) => ({ operation, at: first + index })).filter(({ operation }) => operation.streams.includes(stream));
  mine.sort((a, b) => start[a.at] - start[b.at]);
  for (const { operation, at } of mine) {
    const end = start[at] + length[at];
    const last = legs.at(-1);
    const same = last && last.operation.family === operation.family && last.operation.pass === operation.pass;
    if (same && start[at] - last.end < 1e-6) {
      last.end = end;
      last.count++;
    } else legs.push({ operation, count: 1, start: start[at], end });
  }
  return legs;
}

/** What a leg is called, the longer name first. */
function legNames({ operation }: Leg): string[] {
  const name = `${operation.family} ${operation.pass}`;
  return [name, name.replace("attention", "attn"), operation.pass];
}

export function paintStream(scene: Scene, surface: Surface, row: Row): void {
  const y = topOf(scene.view, row) + 2;
  const height = row.height - 4;
  const { layout, theme } = scene;
  surface.rect(layout.gutter, y, layout.lanes, height, theme.dark ? "#1b1f25" : "#f7f8f9");
  if (row.stream === "pipeline") paintMessages(scene, surface, row, y, height);
  else paintOperations(scene, surface, row, y, height);
  paintOthers(scene, surface, row, y, height);
}

/** Messages that leave a rank: activations above, gradients below. */
function paintMessages(scene: Scene, surface: Surface, row: Row, y: number, height: number): void {
  const { layout, view, theme, page } = scene;
  const { slots, messages } = row.run;
  const { out } = linksOf(row.run);
  const colours = [page.palette.causes.waits_for_gradient, page.palette.causes.waits_for_forward].map((c) => mixed(c, theme.block, 0.72));
  let drawn = [-1, -1];
  for (let slot = slots.first[row.rank]; slot < slots.first[row.rank + 1]; slot++) {
    if (slots.start[slot] > view.to) break;
    for (let k = out.start[slot]; k < out.start[slot + 1]; k++) {
      const m = out.items[k];
      if (messages.end[m] < view.from) continue;
      const forward = messages.isActivation[m];
      const from = Math.max(xOf(layout, view, messages.start[m]), layout.gutter);
      const to = Math.max(xOf(layout, view, messages.end[m]), from + 1);
      if (to - drawn[forward] < 0.5) continue;
      drawn = forward ? [drawn[0], to] : [to, drawn[1]];
      surface.rect(from, y + (forward ? 0 : height / 2), to - from, height / 2 - 1, colours[forward]);
      const text = `${forward ? "activation" : "gradient"} to rank ${slots.rank[messages.taker[m]]}`;
      if (to - from > text.length * 5.4) surface.text((from + to) / 2, y + height * (forward ? 0.25 : 0.75), text, 9, "#ffffff", "center");
    }
  }
}

function paintOperations(scene: Scene, surface: Surface, row: Row, y: number, height: number): void {
  const { layout, view, theme, page } = scene;
  const { slots, operations, header } = row.run;
  if (!operations) return;
  const scale = layout.lanes / (view.to - view.from);
  const from = firstAbove(slots.end, view.from, slots.first[row.rank], slots.first[row.rank + 1]);
  const to = firstAbove(slots.start, view.to, from, slots.first[row.rank + 1]);
  const blend = new Columns(layout.lanes);
  const names: { x: number; text: string; line: number }[] = [];
  let legs = false;
  const named = (x: number, width: number, texts: string[], line = 0) => {
    const left = Math.max(x, layout.gutter), right = Math.min(x + width, layout.gutter + layout.lanes);
    const text = texts.find((one) => right - left > one.length * 5.4 + 3);
    if (!text) return;
    names.push({ x: (left + right) / 2, text, line });
    legs ||= line > 0;
  };
  for (let slot = from; slot < to; slot++) {
    const kind = header.operations![operations.kind[slot]];
    if (!kind) continue;
    const origin = layout.gutter + (slots.start[slot] - view.from) * scale;
    const first = operations.first[slot];
    for (let k = 0; k < kind.length; k++) {
      const operation = kind[k];
      if (!operation.streams.includes(row.stream)) continue;
      const x = origin + operations.start[first + k] * scale;
      const width = operations.length[first + k] * scale;
      if (x + width < layout.gutter || x > layout.gutter + layout.lanes) continue;
      const colour = familyColour(page, operation);
      if (width < 1.5) {
        blend.add(x - layout.gutter, width, colour);
        continue;
      }
      surface.rect(x, y, width > 12 ? width - 0.6 : width, height, colour, operation.pass === "W" && width > 4 ? 1 : 0);
      named(x, width, [operation.name]);
    }
    for (const leg of legsOf(kind, row.stream, operations.start, operations.length, first)) {
      if (leg.count > 1) named(origin + leg.start * scale, (leg.end - leg.start) * scale, legNames(leg), 1);
    }
  }
  blend.paint(surface, layout.gutter, y, height);
  names.forEach(({ x, text, line }) => surface.text(x, y + height * (line ? 0.26 : legs ? 0.72 : 0.5), text, 9.5, theme.block, "center"));
}

/** Boxes narrower than a pixel, summed by colour in each pixel column and drawn as shares of its height. */
class Columns {
  private readonly columns: Map<string, number>[];

  constructor(width: number) {
    this.columns = Array.from({ length: Math.ceil(width) + 2 }, () => new Map());
  }

  add(x: number, width: number, colour: string): void {
    for (let at = x; at < x + width; ) {
      const column = Math.floor(at);
      const until = Math.min(column + 1, x + width);
      const shares = this.columns[column];
      if (shares) shares.set(colour, (shares.get(colour) ?? 0) + until - at);
      if (until <= at) break;
      at = until;
    }
  }

  paint(surface: Surface, left: number, y: number, height: number): void {
    this.columns.forEach((shares, column) => {
      let bottom = y + height;
      for (const [colour, share] of shares) {
        surface.rect(left + column, bottom - share * height, 1, share * height, colour);
        bottom -= share * height;
      }
    });
  }
}

function paintOthers(scene: Scene, surface: Surface, row: Row, y: number, height: number): void {
  const { layout, view, theme, page } = scene;
  for (const other of row.run.header.others) {
    if (other.word !== "sync" || other.stream !== row.stream || !other.ranks.includes(row.rank)) continue;
    if (other.end < view.from || other.start > view.to) continue;
    const from = Math.max(xOf(layout, view, other.start), layout.gutter);
    const to = Math.min(xOf(layout, view, other.end), layout.gutter + layout.lanes);
    surface.rect(from, y, Math.max(to - from, 0.7), height, page.palette.kinds.optimizer);
    if (to - from > other.name.length * 5.4 + 3) surface.text((from + to) / 2, y + height / 2, other.name, 9.5, theme.block, "center");
  }
}
