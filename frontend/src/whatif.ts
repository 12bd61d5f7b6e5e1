// What if: the same order timed again with other costs, by a longest path over what each slot and message waits for.
//
// Where costs were given, slots take what Costs (simulator/costs/given.py) says of the changed numbers, and the result
// is the engines'. Elsewhere slots and messages are stretched as they were, and the page says that this is an estimate.

import { CAUSES, groupedBy, PAIR, type Bubbles, type Grouped, type Run } from "./run";

/** Factors on the seconds of each kind; seconds of latency; the ramp over stages, from 1 - x to 1 + x. */
export type Settings = Record<string, number>;

export interface Slider {
  name: string;
  label: string;
  from: number;
  to: number;
  step: number;
  start: number;
}

const F = 0, I = 1, W = 2, B = 3;

/** The sliders that mean something for a run. */
export function slidersOf(run: Run): Slider[] {
  const { tables, latency } = run.header.costs;
  const used = new Set<number>(run.slots.word);
  const whole = used.has(B) || used.has(PAIR);
  const splits = tables !== null && !tables.includes("B");
  const kinds: [string, string, boolean][] = [
    ["F", "F forward", true],
    ["I", "I backward for input", used.has(I) || (whole && splits)],
    ["W", "W backward for weights", used.has(W) || (whole && splits)],
    ["B", "B full backward", whole && !splits && (used.has(B) || tables !== null)],
    ["FB", "F&B overlapped", used.has(PAIR)],
  ];
  const sliders = kinds.filter(([, , shown]) => shown).map(([name, label]) => ({ name, label, from: 0, to: 2, step: 0.01, start: 1 }));
  if (run.messages.count) {
    const typical = run.slots.end[0] - run.slots.start[0];
    const most = Math.max(4 * latency, typical) || 1;
    sliders.push({ name: "latency", label: "latency of a message", from: 0, to: Math.max(most, latency), step: most / 200, start: latency });
  }
  if (run.header.stages > 1) {
    sliders.push({ name: "imbalance", label: "stage imbalance", from: -0.5, to: 0.5, step: 0.01, start: 0 });
  }
  return sliders;
}

interface Structure {
  order: Int32Array;
  inputs: Grouped; // of each node: slots, then messages, then other tasks
  lag: Float64Array | null; // seconds that each node started after its inputs, for reasons that have no edge
}

const known = new WeakMap<Run, Structure>();

function structureOf(run: Run): Structure {
  let found = known.get(run);
  if (!found) known.set(run, (found = build(run)));
  return found;
}

function build(run: Run): Structure {
  const { slots, messages, header } = run;
  const nodes = slots.count + messages.count + header.others.length;
  const further = [run.columns.get(`${header.prefix}.furtherSource`), run.columns.get(`${header.prefix}.furtherTarget`)];
  const extra = further[0]?.length ?? 0;
  const source = new Int32Array(slots.count - run.ranks + 2 * messages.count + extra);
  const target = new Int32Array(source.length);
  let edge = 0;
  const add = (from: number, to: number) => {
    source[edge] = from;
    target[edge++] = to;
  };
  for (let rank = 0; rank < run.ranks; rank++) {
    for (let slot = slots.first[rank] + 1; slot < slots.first[rank + 1]; slot++) add(slot - 1, slot);
  }
  for (let m = 0; m < messages.count; m++) {
    add(messages.maker[m], slots.count + m);
    add(slots.count + m, messages.taker[m]);
  }
  for (let k = 0; k < extra; k++) add(further[0]![k], further[1]![k]);
  const byTarget = groupedBy(target, nodes);
  const inputs = { start: byTarget.start, items: byTarget.items.map((e) => source[e]) };
  const bySource = groupedBy(source, nodes);
  const order = topological(inputs, { start: bySource.start, items: bySource.items.map((e) => target[e]) });
  return { order, inputs, lag: header.costs.tables ? null : lagsOf(run, inputs, nodes) };
}

function topological(inputs: Grouped, outputs: Grouped): Int32Array {
  const nodes = inputs.start.length - 1;
  const waits = new Int32Array(nodes);
  const order = new Int32Array(nodes);
  let tail = 0;
  for (let node = 0; node < nodes; node++) {
    waits[node] = inputs.start[node + 1] - inputs.start[node];
    if (waits[node] === 0) order[tail++] = node;
  }
  for (let head = 0; head < tail; head++) {
    const node = order[head];
    for (let k = outputs.start[node]; k < outputs.start[node + 1]; k++) {
      if (--waits[outputs.items[k]] === 0) order[tail++] = outputs.items[k];
    }
  }
  if (tail < nodes) throw new Error("the order of this page has a cycle");
  return order;
}

function lagsOf(run: Run, inputs: Grouped, nodes: number): Float64Array {
  const { slots, messages, header } = run;
  const times = (name: "start" | "end") => {
    const all = new Float64Array(nodes);
    all.set(slots[name]);
    all.set(messages[name], slots.count);
    header.others.forEach((other, k) => (all[slots.count + messages.count + k] = other[name]));
    return all;
  };
  const [start, end] = [times("start"), times("end")];
  return start.map((begin, node) => begin - latest(inputs, end, node));
}

function latest(inputs: Grouped, end: Float64Array, node: number): number {
  let time = 0;
  for (let k = inputs.start[node]; k < inputs.start[node + 1]; k++) time = Math.max(time, end[inputs.items[k]]);
  return time;
}

/** Seconds of each slot under some settings. */
export function slotSeconds(run: Run, settings: Settings): Float64Array {
  const { slots, header } = run;
  const factor = (name: string) => settings[name] ?? 1;
  const ramp = Float64Array.from({ length: Math.max(header.stages, 1) }, (_, stage) =>
    1 + (settings.imbalance ?? 0) * (header.stages > 1 ? (2 * stage) / (header.stages - 1) - 1 : 0));
  const tables = new Map((header.costs.tables ?? []).map((name) => [name, run.columns.get(`${header.prefix}.cost.${name}`)!]));
  const at = (name: string, stage: number, microbatch: number) => {
    const table = tables.get(name)!;
    return table[table.length > header.stages ? stage * header.microbatches + microbatch : stage] * ramp[stage];
  };
  const alone = (kind: number, stage: number, microbatch: number): number => {
    if (kind === B && !tables.has("B")) return alone(I, stage, microbatch) + alone(W, stage, microbatch);
    const name = ["F", "I", "W", "B"][kind];
    return at(name, stage, microbatch) * factor(name);
  };
  const seconds = new Float64Array(slots.count);
  for (let slot = 0; slot < slots.count; slot++) {
    const [word, stage, microbatch] = [slots.word[slot], slots.stage[slot], slots.microbatch[slot]];
    if (stage < 0 || !header.costs.tables) {
      const name = stage < 0 ? "" : word === PAIR ? "FB" : ["F", "I", "W", "B"][word];
      seconds[slot] = (slots.end[slot] - slots.start[slot]) * factor(name) * (stage < 0 ? 1 : ramp[stage]);
    } else if (word === PAIR) {
      const pair = slots.pair[slot];
      const both = tables.has("FB") ? at("FB", stage, microbatch)
        : alone(F, stage, microbatch) + alone(B, slots.pairStage[pair], slots.pairMicrobatch[pair]);
      seconds[slot] = both * factor("FB");
    } else seconds[slot] = alone(word, stage, microbatch);
  }
  return seconds;
}

export interface Timed {
  run: Run; // with the new times; its bubbles have no causes
  makespan: number;
  bubbleRate: number;
}

/** A run timed again. */
export function timedAgain(run: Run, settings: Settings): Timed {
  const { slots, messages, header } = run;
  const { order, inputs, lag } = structureOf(run);
  const seconds = slotSeconds(run, settings);
  const latency = settings.latency ?? header.costs.latency;
  const start = new Float64Array(order.length);
  const end = new Float64Array(order.length);
  for (const node of order) {
    start[node] = Math.max(0, latest(inputs, end, node) + (lag ? lag[node] : 0));
    end[node] = start[node] + lasts(node);
  }
  function lasts(node: number): number {
    if (node < slots.count) return seconds[node];
    const m = node - slots.count;
    if (m >= messages.count) return header.others[m - messages.count].end - header.others[m - messages.count].start;
    return header.costs.exact ? latency : Math.max(0, messages.end[m] - messages.start[m] + latency - header.costs.latency);
  }
  let makespan = 0;
  for (const time of end) makespan = Math.max(makespan, time);
  const busy = seconds.reduce((sum, value) => sum + value, 0);
  const times = { start: start.subarray(0, slots.count), end: end.subarray(0, slots.count) };
  const again: Run = {
    ...run,
    header: { ...header, makespan, others: [] },
    span: makespan || 1,
    retimed: true,
    slots: { ...slots, ...times, critical: new Uint8Array(slots.count) },
    messages: {
      ...messages,
      start: start.slice(slots.count, slots.count + messages.count),
      end: end.slice(slots.count, slots.count + messages.count),
      critical: new Uint8Array(messages.count),
    },
    bubbles: gapsOf(run, times.start, times.end, makespan),
  };
  return { run: again, makespan, bubbleRate: makespan ? 1 - busy / (run.ranks * makespan) : 0 };
}

/** The idle intervals of a run timed again: causes are the simulation's to tell. */
function gapsOf(run: Run, start: Float64Array, end: Float64Array, makespan: number): Bubbles {
  const { first, count: slots } = run.slots;
  const found: { rank: number; at: number; start: number; end: number }[] = [];
  const perRank = new Int32Array(run.ranks + 1);
  for (let rank = 0; rank < run.ranks; rank++) {
    let idle = 0;
    for (let slot = first[rank]; slot <= first[rank + 1]; slot++) {
      const last = slot === first[rank + 1];
      const until = last ? makespan : start[slot];
      if (until - idle > 1e-9 * makespan) found.push({ rank, at: last ? slots + rank : slot, start: idle, end: until });
      if (!last) idle = end[slot];
    }
    perRank[rank + 1] = found.length;
  }
  const none = new Float64Array(found.length);
  return {
    count: found.length,
    first: perRank,
    rank: Int32Array.from(found, (gap) => gap.rank),
    at: Int32Array.from(found, (gap) => gap.at),
    start: Float64Array.from(found, (gap) => gap.start),
    end: Float64Array.from(found, (gap) => gap.end),
    main: new Int32Array(found.length).fill(CAUSES.length),
    causes: CAUSES.map(() => none),
    critical: none,
    endedBy: new Int32Array(found.length).fill(-1),
  };
}
