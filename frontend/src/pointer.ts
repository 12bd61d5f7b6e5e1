// The mouse: hovering tells, clicking selects and opens, dragging pans, the wheel zooms.

import { element, line } from "./dom";
import { rowAt, timeAt } from "./layout";
import { memoryTold } from "./panels";
import { bubbleAt, linksOf, type Run, slotAt } from "./run";
import { barOf } from "./scene";
import type { Timeline } from "./timeline";
import { type Target, target } from "./view";
import { amount, messageName, percent, slotName, time } from "./words";

function hit(timeline: Timeline, event: MouseEvent): { target: Target | null; text: string; run: Run; rank: number; at: number } | null {
  const box = element("lanes").getBoundingClientRect();
  const [x, y] = [event.clientX - box.left, event.clientY - box.top];
  const row = y < timeline.layout.view ? rowAt(timeline.layout, y + timeline.view.top) : null;
  if (!row || row.kind === "title") return null;
  const at = timeAt(timeline.layout, timeline.view, x);
  const { run, rank } = row;
  const where = { target: null, text: "", run, rank, at };
  if (x < timeline.layout.gutter) return { ...where, text: "label" };
  if (x > timeline.layout.gutter + timeline.layout.lanes) return { ...where, text: "bar" };
  const slot = slotAt(run, rank, at);
  if (row.kind === "stream" && row.stream === "pipeline") return { ...where, text: messageAt(timeline, run, rank, at) };
  if (row.kind === "stream") return { ...where, target: target("slot", run, slot), text: operationAt(timeline, run, rank, row.stream, slot, at) };
  const found = slot >= 0 ? target("slot", run, slot) : target("bubble", run, bubbleAt(run, rank, at));
  return { ...where, target: found };
}

function operationAt(timeline: Timeline, run: Run, rank: number, stream: string, slot: number, at: number): string {
  const sync = run.header.others.find((o) => o.stream === stream && o.ranks.includes(rank) && o.start <= at && at < o.end);
  if (sync) return `${sync.name}, ${time(sync.start)} to ${time(sync.end)}, lasts ${time(sync.end - sync.start)}`;
  const { operations, header, slots } = run;
  if (!operations || slot < 0 || operations.kind[slot] < 0) return "";
  const kind = header.operations![operations.kind[slot]];
  const inside = at - slots.start[slot];
  const k = kind.findIndex((operation, index) => {
    const begin = operations.start[operations.first[slot] + index];
    return operation.streams.includes(stream) && begin <= inside && inside < begin + operations.length[operations.first[slot] + index];
  });
  if (k < 0) return `nothing on the ${stream} stream of ${slotName(timeline.page, run, slot)}`;
  const lasts = operations.length[operations.first[slot] + k];
  return `${kind[k].name}, ${timeline.page.palette.passes[kind[k].pass]}, of ${slotName(timeline.page, run, slot)} on the ${stream} stream, lasts ${time(lasts)}`;
}

function messageAt(timeline: Timeline, run: Run, rank: number, at: number): string {
  const { out } = linksOf(run);
  const names: string[] = [];
  for (let slot = run.slots.first[rank]; slot < run.slots.first[rank + 1] && run.slots.start[slot] <= at; slot++) {
    for (let k = out.start[slot]; k < out.start[slot + 1]; k++) {
      const m = out.items[k];
      if (run.messages.start[m] <= at && at < run.messages.end[m]) names.push(messageName(timeline.page, run, m));
    }
  }
  return names.length ? `${names.slice(0, 4).join("; ")}${names.length > 4 ? ` and ${names.length - 4} more` : ""}` : "";
}

export function pointer(timeline: Timeline): void {
  const stage = element("stage");
  let drag: { x: number; y: number; from: number; to: number; top: number; moved: boolean } | null = null;
  stage.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    drag = { x: event.clientX, y: event.clientY, from: timeline.view.from, to: timeline.view.to, top: timeline.view.top, moved: false };
  });
  window.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
    if (!drag.moved && Math.hypot(dx, dy) < 4) return;
    drag.moved = true;
    hideTip();
    timeline.view.top = Math.max(0, drag.top - dy);
    const shift = (-dx / timeline.layout.lanes) * (drag.to - drag.from);
    timeline.look(drag.from + shift, drag.to + shift);
  });
  window.addEventListener("pointerup", (event) => {
    if (drag && !drag.moved && stage.contains(event.target as Node)) clicked(timeline, event);
    drag = null;
  });
  stage.addEventListener("pointermove", (event) => {
    if (!drag?.moved) hover(timeline, event);
  });
  stage.addEventListener("pointerleave", () => hideTip());
  stage.addEventListener("dblclick", (event) => {
    const found = hit(timeline, event);
    if (found?.target) timeline.zoomTo(found.target);
  });
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    hideTip();
    const box = stage.getBoundingClientRect();
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      const shift = ((event.deltaX || event.deltaY) / timeline.layout.lanes) * (timeline.view.to - timeline.view.from);
      timeline.look(timeline.view.from + shift, timeline.view.to + shift);
    } else timeline.zoom(2 ** (event.deltaY / 300), timeAt(timeline.layout, timeline.view, event.clientX - box.left));
  }, { passive: false });
}

function clicked(timeline: Timeline, event: MouseEvent): void {
  const found = hit(timeline, event);
  if (!found) timeline.select(null);
  else if (found.text === "label") timeline.open(found.run.index, found.rank);
  else {
    timeline.view.focus = { run: found.run.index, rank: found.rank };
    timeline.select(found.target);
  }
}

function hover(timeline: Timeline, event: MouseEvent): void {
  const found = hit(timeline, event);
  const tip = element("tip");
  tip.replaceChildren();
  if (found?.text === "bar" && !found.run.retimed) {
    tip.append(line("b", `Rank ${found.rank}: where the step goes`));
    for (const part of barOf(timeline.page, found.run, found.rank, timeline.theme)) {
      tip.append(line("p", `${time(part.seconds)} (${percent(part.seconds / found.run.span)}) ${part.label}`));
    }
  } else if (found?.text === "label") {
    const { stages, peak, peakBytes } = found.run.header.perRank[found.rank];
    const most = found.run.header.memory.unit === "bytes" ? peakBytes : peak;
    tip.append(line("b", `Rank ${found.rank}`), line("p", `stages ${stages.join(", ")}; at most ${amount(found.run, most)} of activations. Click to open its streams.`));
  } else if (found?.text) tip.append(line("b", found.text));
  else if (found?.target) {
    const told = timeline.told(found.target);
    tip.append(line("b", told.title), ...told.lines.slice(0, 4).map((text) => line("p", text)));
    if (found.run.ranks) tip.append(line("p", `Rank ${found.rank} keeps ${memoryTold(found.run, found.rank, found.at)}.`));
  }
  tip.hidden = !tip.childElementCount;
  if (tip.hidden) return;
  const right = event.clientX + 16 + tip.offsetWidth > window.innerWidth;
  tip.style.left = `${right ? Math.max(4, event.clientX - tip.offsetWidth - 12) : event.clientX + 16}px`;
  const low = event.clientY + 18 + tip.offsetHeight > window.innerHeight;
  tip.style.top = `${low ? Math.max(4, event.clientY - tip.offsetHeight - 12) : event.clientY + 18}px`;
}

function hideTip(): void {
  element("tip").hidden = true;
}
