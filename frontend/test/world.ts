// Tiny runs for the tests.

import { CAUSES, type Run } from "../src/run";
import type { Header } from "../src/data";

export interface Slot {
  rank: number;
  word: number;
  stage: number;
  microbatch: number;
  start: number;
  end: number;
}

/** A run of slots in rank order, with messages as [maker, taker] and costs by stage. */
export function world(slots: Slot[], messages: [number, number][] = [], costs: Record<string, number[]> = {}): Run {
  const ranks = Math.max(...slots.map((slot) => slot.rank)) + 1;
  const makespan = Math.max(...slots.map((slot) => slot.end));
  const first = Int32Array.from({ length: ranks + 1 }, (_, rank) => slots.filter((slot) => slot.rank < rank).length);
  const numbers = (name: keyof Slot) => Float64Array.from(slots, (slot) => slot[name]);
  const gaps: { rank: number; start: number; end: number; at: number }[] = [];
  for (let rank = 0; rank < ranks; rank++) {
    let idle = 0;
    for (let slot = first[rank]; slot <= first[rank + 1]; slot++) {
      const until = slot < first[rank + 1] ? slots[slot].start : makespan;
      if (until > idle) gaps.push({ rank, start: idle, end: until, at: slot < first[rank + 1] ? slot : slots.length + rank });
      idle = slots[slot]?.end ?? 0;
    }
  }
  const of = (name: "rank" | "start" | "end" | "at") => Float64Array.from(gaps, (gap) => gap[name]);
  const none = new Float64Array(gaps.length);
  const columns = new Map(Object.entries(costs).map(([name, table]) => [`0.cost.${name}`, Float64Array.from(table)]));
  return {
    index: 0,
    ranks,
    span: makespan,
    retimed: false,
    columns,
    levels: [],
    operations: null,
    header: {
      prefix: "0", name: "world", title: "world", ranks, makespan, others: [], operations: null,
      stages: Math.max(...slots.map((slot) => slot.stage)) + 1,
      microbatches: Math.max(...slots.map((slot) => slot.microbatch)) + 1,
      perRank: [], memory: { unit: "micro-batches", levels: [], static: [], capacity: null },
      costs: { exact: true, why: "", tables: Object.keys(costs), latency: 0 },
    } as unknown as Header,
    slots: {
      count: slots.length, first, rank: Int32Array.from(slots, (slot) => slot.rank), word: Uint8Array.from(slots, (slot) => slot.word),
      stage: numbers("stage"), microbatch: numbers("microbatch"), start: numbers("start"), end: numbers("end"),
      pair: new Int32Array(slots.length).fill(-1), pairStage: new Float64Array(), pairMicrobatch: new Float64Array(),
      slack: new Float64Array(slots.length), critical: new Uint8Array(slots.length),
    },
    messages: {
      count: messages.length,
      maker: Int32Array.from(messages, ([maker]) => maker),
      taker: Int32Array.from(messages, ([, taker]) => taker),
      isActivation: new Uint8Array(messages.length).fill(1),
      start: Float64Array.from(messages, ([maker]) => slots[maker].end),
      end: Float64Array.from(messages, ([maker]) => slots[maker].end),
      critical: new Uint8Array(messages.length),
    },
    bubbles: {
      count: gaps.length,
      first: Int32Array.from({ length: ranks + 1 }, (_, rank) => gaps.filter((gap) => gap.rank < rank).length),
      rank: Int32Array.from(of("rank")), at: of("at"), start: of("start"), end: of("end"),
      main: new Int32Array(gaps.length), critical: none, endedBy: new Int32Array(gaps.length).fill(-1),
      causes: CAUSES.map((_, cause) => (cause ? none : Float64Array.from(gaps, (gap) => gap.end - gap.start))),
    },
  };
}

/** Two stages, two micro-batches of 1F1B: F = 1, B = 2. */
export const two = (): Run =>
  world(
    [
      { rank: 0, word: 0, stage: 0, microbatch: 0, start: 0, end: 1 },
      { rank: 0, word: 0, stage: 0, microbatch: 1, start: 1, end: 2 },
      { rank: 0, word: 3, stage: 0, microbatch: 0, start: 4, end: 6 },
      { rank: 0, word: 3, stage: 0, microbatch: 1, start: 7, end: 9 },
      { rank: 1, word: 0, stage: 1, microbatch: 0, start: 1, end: 2 },
      { rank: 1, word: 3, stage: 1, microbatch: 0, start: 2, end: 4 },
      { rank: 1, word: 0, stage: 1, microbatch: 1, start: 4, end: 5 },
      { rank: 1, word: 3, stage: 1, microbatch: 1, start: 5, end: 7 },
    ],
    [[0, 4], [1, 6], [5, 2], [7, 3]],
    { F: [1, 1], I: [1, 1], W: [1, 1] },
  );
