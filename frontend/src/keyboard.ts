// The keyboard: pan, zoom, and walk along bubbles, micro-batches and ranks.

import { element } from "./dom";
import { matches } from "./find";
import { bubbleAt, slotAt } from "./run";
import type { Timeline } from "./timeline";
import { target } from "./view";

export function keyboard(timeline: Timeline): void {
  const stage = element("stage");
  stage.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (pressed(timeline, event.key)) event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target instanceof HTMLInputElement;
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/") {
      event.preventDefault();
      element("search").focus();
    } else if (event.key === "?") element<HTMLDetailsElement>("keys").open = !element<HTMLDetailsElement>("keys").open;
  });
}

function pressed(timeline: Timeline, key: string): boolean {
  const { from, to, selected, focus } = timeline.view;
  const [length, middle] = [to - from, (from + to) / 2];
  const keys: Record<string, () => void> = {
    ArrowLeft: () => timeline.look(from - length / 5, to - length / 5),
    ArrowRight: () => timeline.look(from + length / 5, to + length / 5),
    ArrowUp: () => timeline.zoom(0.7, middle),
    ArrowDown: () => timeline.zoom(1 / 0.7, middle),
    "+": () => timeline.zoom(0.7, middle),
    "=": () => timeline.zoom(0.7, middle),
    "-": () => timeline.zoom(1 / 0.7, middle),
    "0": () => timeline.fit(),
    Escape: () => timeline.select(null),
    n: () => nextBubble(timeline, 1),
    N: () => nextBubble(timeline, -1),
    m: () => nextOfMicrobatch(timeline, 1),
    M: () => nextOfMicrobatch(timeline, -1),
    "]": () => nextOnRank(timeline, 1),
    "[": () => nextOnRank(timeline, -1),
    j: () => nextRank(timeline, 1),
    k: () => nextRank(timeline, -1),
    e: () => timeline.open(focus.run, focus.rank),
    c: () => timeline.toggle("path"),
    t: () => timeline.toggle("patterns"),
    Enter: () => selected && timeline.zoomTo(selected),
  };
  const action = keys[key];
  action?.();
  return action !== undefined;
}

function nextRank(timeline: Timeline, step: number): void {
  const { run, rank } = timeline.view.focus;
  const next = rank + step;
  if (next < 0 || next >= timeline.runs[run].ranks) return;
  timeline.view.focus = { run, rank: next };
  const at = timeline.view.selected ? selectedTime(timeline) : (timeline.view.from + timeline.view.to) / 2;
  const slot = slotAt(timeline.shown[run], next, at);
  timeline.select(slot >= 0 ? { what: "slot", run, index: slot } : target("bubble", timeline.shown[run], bubbleAt(timeline.shown[run], next, at)), true);
}

function selectedTime(timeline: Timeline): number {
  const { what, run, index } = timeline.view.selected!;
  const { start, end } = what === "slot" ? timeline.shown[run].slots : timeline.shown[run].bubbles;
  return (start[index] + end[index]) / 2;
}

function nextBubble(timeline: Timeline, step: number): void {
  const { run, rank } = timeline.view.focus;
  const { bubbles } = timeline.shown[run];
  if (!bubbles.count) return;
  const { selected } = timeline.view;
  let next: number;
  if (selected?.what === "bubble" && selected.run === run) next = selected.index + step;
  else {
    const at = selected ? selectedTime(timeline) : timeline.view.from;
    next = bubbles.first[rank];
    while (next < bubbles.first[rank + 1] && bubbles.start[next] < at) next++;
    if (step < 0) next--;
  }
  timeline.select({ what: "bubble", run, index: (next + bubbles.count) % bubbles.count }, true);
}

function nextOnRank(timeline: Timeline, step: number): void {
  const { run, rank } = timeline.view.focus;
  const { slots } = timeline.shown[run];
  const { selected } = timeline.view;
  let next: number;
  if (selected?.what === "slot") next = selected.index + step;
  else if (selected) next = step > 0 ? timeline.shown[run].bubbles.at[selected.index] : timeline.shown[run].bubbles.at[selected.index] - 1;
  else next = slots.first[rank];
  if (next >= slots.first[rank] && next < slots.first[rank + 1]) timeline.select({ what: "slot", run, index: next }, true);
}

/** To the next slot, in time, of the selected slot's micro-batch; to its forward of micro-batch 0 without one. */
function nextOfMicrobatch(timeline: Timeline, step: number): void {
  const { run } = timeline.view.focus;
  const { selected } = timeline.view;
  const slots = timeline.shown[run].slots;
  const microbatch = selected?.what === "slot" ? slots.microbatch[selected.index] : 0;
  const found = matches(timeline.shown[run], { rank: null, stage: null, microbatch, kind: null });
  const at = selected?.what === "slot" ? found.indexOf(selected.index) : -1;
  const next = found[(at + step + found.length) % found.length];
  if (next !== undefined) timeline.select({ what: "slot", run, index: next }, true);
}
