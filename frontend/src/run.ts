// A run as flat arrays. Slots are numbered rank by rank in the order they run; times are seconds.

import type { Columns, Header, Numbers, Page } from "./data";

export interface Slots {
  count: number;
  first: Int32Array; // (ranks + 1)
  rank: Int32Array;
  word: Uint8Array; // index in Page.words
  stage: Numbers;
  microbatch: Numbers;
  pair: Int32Array; // index of its backward in pairStage and pairMicrobatch, -1 for none
  pairStage: Numbers;
  pairMicrobatch: Numbers;
  start: Float64Array;
  end: Float64Array;
  slack: Float64Array;
  critical: Numbers;
}

export interface Messages {
  count: number;
  maker: Numbers; // slots
  taker: Numbers;
  isActivation: Numbers;
  start: Float64Array;
  end: Float64Array;
  critical: Numbers;
}

export interface Bubbles {
  count: number;
  first: Int32Array; // (ranks + 1)
  rank: Int32Array;
  at: Numbers; // the slot behind it; slots + rank at the end
  start: Float64Array;
  end: Float64Array;
  main: Numbers; // index of its main cause
  causes: Float64Array[]; // seconds, by cause
  critical: Float64Array;
  endedBy: Numbers; // a message, or messages + an index in others; -1 for none
}

export interface Level {
  kind: string;
  during: Float64Array; // while each slot runs
  after: Float64Array;
}

export interface Operations {
  kind: Numbers; // of each slot, index in Header.operations; -1 for none
  first: Int32Array; // (slots + 1)
  start: Float64Array; // since the start of the slot
  length: Float64Array;
  exposed: Float64Array; // of each slot
}

export interface Run {
  index: number;
  header: Header;
  columns: Columns;
  ranks: number;
  span: number; // of the time axis
  retimed: boolean; // by the sliders, so that figures of the simulation do not hold
  slots: Slots;
  messages: Messages;
  bubbles: Bubbles;
  levels: Level[];
  operations: Operations | null;
}

export const CAUSES = [
  "warm_up", "cool_down", "waits_for_forward", "waits_for_gradient", "waits_for_transfer", "blocked_by_order", "barrier",
  "late_start",
];
export const PAIR = 4;
export const KINDS = 4;

export function runsOf(page: Page, columns: Columns): Run[] {
  return page.runs.map((header, index) => runOf(header, columns, index));
}

function runOf(header: Header, columns: Columns, index: number): Run {
  const get = (name: string) => columns.get(`${header.prefix}.${name}`)!;
  const slots = slotsOf(header, get);
  const messages = messagesOf(header, get, slots);
  return {
    index,
    header,
    columns,
    ranks: header.ranks,
    span: header.makespan || 1,
    retimed: false,
    slots,
    messages,
    bubbles: bubblesOf(header, get, slots),
    levels: header.memory.levels.map(({ kind, per }, number) => levelOf(kind, per, number, get, slots)),
    operations: header.operations && operationsOf(header, get, slots),
  };
}

type Get = (name: string) => Numbers;

function slotsOf(header: Header, get: Get): Slots {
  const counts = get("slots");
  const first = new Int32Array(header.ranks + 1);
  for (let rank = 0; rank < header.ranks; rank++) first[rank + 1] = first[rank] + counts[rank];
  const count = first[header.ranks];
  const [gap, length, word] = [get("gap"), get("length"), get("word") as Uint8Array];
  const rank = new Int32Array(count);
  const pair = new Int32Array(count);
  const start = new Float64Array(count);
  const end = new Float64Array(count);
  let pairs = 0;
  for (let r = 0; r < header.ranks; r++) {
    let ticks = 0;
    for (let slot = first[r]; slot < first[r + 1]; slot++) {
      rank[slot] = r;
      pair[slot] = word[slot] === PAIR ? pairs++ : -1;
      ticks += gap[slot];
      start[slot] = ticks / header.perSecond;
      ticks += length[slot];
      end[slot] = ticks / header.perSecond;
    }
  }
  return {
    count, first, rank, word, pair, start, end,
    stage: get("stage"),
    microbatch: get("microbatch"),
    pairStage: get("pairStage"),
    pairMicrobatch: get("pairMicrobatch"),
    slack: seconds(get("slack"), header.perSecond),
    critical: get("critical"),
  };
}

function seconds(ticks: Numbers, perSecond: number): Float64Array {
  const out = new Float64Array(ticks.length);
  for (let i = 0; i < ticks.length; i++) out[i] = ticks[i] / perSecond;
  return out;
}

function messagesOf(header: Header, get: Get, slots: Slots): Messages {
  const [maker, lag, length] = [get("maker"), get("messageLag"), get("messageLength")];
  const start = new Float64Array(maker.length);
  const end = new Float64Array(maker.length);
  for (let m = 0; m < maker.length; m++) {
    const left = Math.round(slots.end[maker[m]] * header.perSecond) + lag[m];
    start[m] = left / header.perSecond;
    end[m] = (left + length[m]) / header.perSecond;
  }
  return {
    count: maker.length, maker, start, end,
    taker: get("taker"),
    isActivation: get("isActivation"),
    critical: get("messageCritical"),
  };
}

function bubblesOf(header: Header, get: Get, slots: Slots): Bubbles {
  const at = get("bubbleAt");
  const count = at.length;
  const main = get("bubbleMain");
  const causes = CAUSES.map((name) => seconds(get(`bubble.${name}`), header.perSecond));
  const rank = new Int32Array(count);
  const first = new Int32Array(header.ranks + 1);
  const start = new Float64Array(count);
  const end = new Float64Array(count);
  for (let b = 0; b < count; b++) {
    const last = at[b] >= slots.count;
    rank[b] = last ? at[b] - slots.count : slots.rank[at[b]];
    const behind = last ? slots.first[rank[b] + 1] : at[b];
    first[rank[b] + 1]++;
    start[b] = behind > slots.first[rank[b]] ? slots.end[behind - 1] : 0;
    end[b] = last ? header.makespan : slots.start[at[b]];
    let others = 0;
    for (const cause of causes) others += cause[b];
    causes[main[b]][b] = end[b] - start[b] - others;
  }
  for (let r = 0; r < header.ranks; r++) first[r + 1] += first[r];
  const critical = seconds(get("bubbleCritical"), header.perSecond);
  return { count, first, rank, at, start, end, main, causes, critical, endedBy: get("bubbleEndedBy") };
}

function levelOf(kind: string, per: number, number: number, get: Get, slots: Slots): Level {
  const [taken, freed] = [get(`taken.${number}`), get(`freed.${number}`)];
  const during = new Float64Array(slots.count);
  const after = new Float64Array(slots.count);
  for (let rank = 0; rank + 1 < slots.first.length; rank++) {
    let held = 0;
    for (let slot = slots.first[rank]; slot < slots.first[rank + 1]; slot++) {
      held += taken[slot];
      during[slot] = held / per;
      held -= freed[slot];
      after[slot] = held / per;
    }
  }
  return { kind, during, after };
}

function operationsOf(header: Header, get: Get, slots: Slots): Operations {
  const kind = get("kindOfSlot");
  const first = new Int32Array(slots.count + 1);
  for (let slot = 0; slot < slots.count; slot++) {
    first[slot + 1] = first[slot] + (kind[slot] < 0 ? 0 : header.operations![kind[slot]].length);
  }
  return {
    kind, first,
    start: seconds(get("operationStart"), header.operationsPerSecond),
    length: seconds(get("operationLength"), header.operationsPerSecond),
    exposed: seconds(get("exposed"), header.perSecond),
  };
}

/** The first index in [from, to) whose value exceeds `limit`, of ascending values; `to` if none does. */
export function firstAbove(values: Float64Array, limit: number, from: number, to: number): number {
  while (from < to) {
    const middle = (from + to) >>> 1;
    if (values[middle] > limit) to = middle;
    else from = middle + 1;
  }
  return from;
}

/** The slot of a rank that runs at a time, or -1. */
export function slotAt(run: Run, rank: number, time: number): number {
  const { first, start, end } = run.slots;
  const slot = firstAbove(end, time, first[rank], first[rank + 1]);
  return slot < first[rank + 1] && start[slot] <= time ? slot : -1;
}

/** The bubble of a rank at a time, or -1. */
export function bubbleAt(run: Run, rank: number, time: number): number {
  const { first, start, end } = run.bubbles;
  const bubble = firstAbove(end, time, first[rank], first[rank + 1]);
  return bubble < first[rank + 1] && start[bubble] <= time ? bubble : -1;
}

/** Lists of items by key: list k is items[start[k] .. start[k + 1]]. */
export interface Grouped {
  start: Int32Array;
  items: Int32Array;
}

export function groupedBy(keys: Numbers, size: number): Grouped {
  const start = new Int32Array(size + 1);
  for (let i = 0; i < keys.length; i++) start[keys[i] + 1]++;
  for (let k = 0; k < size; k++) start[k + 1] += start[k];
  const fill = start.slice(0, size);
  const items = new Int32Array(keys.length);
  for (let i = 0; i < keys.length; i++) items[fill[keys[i]]++] = i;
  return { start, items };
}

export interface Links {
  in: Grouped; // messages by taker
  out: Grouped; // messages by maker
  innerSource: Numbers;
  innerTarget: Numbers;
}

const known = new WeakMap<Run, Links>();

/** The messages of each slot; found when first asked for. */
export function linksOf(run: Run): Links {
  let links = known.get(run);
  if (!links) {
    links = {
      in: groupedBy(run.messages.taker, run.slots.count),
      out: groupedBy(run.messages.maker, run.slots.count),
      innerSource: run.columns.get(`${run.header.prefix}.innerSource`)!,
      innerTarget: run.columns.get(`${run.header.prefix}.innerTarget`)!,
    };
    known.set(run, links);
  }
  return links;
}
