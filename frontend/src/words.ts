// The sentences: what a block or a bubble is, what it waits for, what would remove it.

import type { Page } from "./data";
import { CAUSES, linksOf, PAIR, type Run } from "./run";

/** Up to six significant digits, without an exponent where it stays readable. */
export function number(value: number): string {
  const rounded = Number(value.toPrecision(6));
  return Math.abs(rounded) >= 1e7 ? rounded.toExponential() : String(rounded);
}

/** Seconds in the unit that suits them. */
export function time(seconds: number): string {
  const size = Math.abs(seconds);
  if (size === 0 || size >= 0.1) return `${number(seconds)} s`;
  return size >= 1e-4 ? `${number(seconds * 1e3)} ms` : `${number(seconds * 1e6)} µs`;
}

export function bytes(value: number): string {
  const units = ["B", "kB", "MB", "GB"];
  let size = value;
  for (const unit of units) {
    if (Math.abs(size) < 1000) return `${Number(size.toPrecision(4))} ${unit}`;
    size /= 1000;
  }
  return `${Number(size.toPrecision(4))} TB`;
}

export function percent(share: number): string {
  return `${Number((100 * share).toFixed(2))}%`;
}

/** An amount of memory in a run's unit. */
export function amount(run: Run, value: number): string {
  return run.header.memory.unit === "bytes" ? bytes(value) : `${number(value)} micro-batch${Math.abs(value) === 1 ? "" : "es"}`;
}

/** A slot's actions, as `7F94 & 8B26`. */
export function slotName(page: Page, run: Run, slot: number): string {
  const { word, stage, microbatch, pair, pairStage, pairMicrobatch } = run.slots;
  if (word[slot] !== PAIR) {
    return stage[slot] < 0 ? "optimizer step" : `${stage[slot]}${page.words[word[slot]]}${microbatch[slot]}`;
  }
  const other = pair[slot];
  return `${stage[slot]}F${microbatch[slot]} & ${pairStage[other]}B${pairMicrobatch[other]}`;
}

/** The action of a slot that makes an activation or a gradient. */
function madeBy(page: Page, run: Run, message: number): string {
  const slot = run.messages.maker[message];
  const { word, stage, microbatch, pair, pairStage, pairMicrobatch } = run.slots;
  if (word[slot] === PAIR && !run.messages.isActivation[message]) {
    return `${pairStage[pair[slot]]}B${pairMicrobatch[pair[slot]]}`;
  }
  return `${stage[slot]}${word[slot] === PAIR ? "F" : page.words[word[slot]]}${microbatch[slot]}`;
}

export function messageName(page: Page, run: Run, message: number): string {
  const what = run.messages.isActivation[message] ? "activation" : "gradient";
  const [from, to] = [run.messages.maker[message], run.messages.taker[message]].map((slot) => run.slots.rank[slot]);
  return `the ${what} of ${madeBy(page, run, message)} from rank ${from} to rank ${to}`;
}

function enderName(page: Page, run: Run, ender: number): string {
  return ender < run.messages.count ? messageName(page, run, ender) : run.header.others[ender - run.messages.count].text;
}

/** The causes of a bubble, the longest first. */
export function causesOf(run: Run, bubble: number): { cause: string; seconds: number }[] {
  const least = 1e-9 * (run.bubbles.end[bubble] - run.bubbles.start[bubble]);
  return CAUSES.map((cause, index) => ({ cause, seconds: run.bubbles.causes[index][bubble] }))
    .filter(({ seconds }) => seconds > least)
    .sort((a, b) => b.seconds - a.seconds);
}

export interface Told {
  title: string;
  lines: string[];
}

/** Why a bubble is there, and what would remove it. */
export function bubbleTold(page: Page, run: Run, bubble: number): Told {
  const { rank, start, end, at, endedBy, critical, main } = run.bubbles;
  const lasts = end[bubble] - start[bubble];
  const title = `Bubble on rank ${rank[bubble]}: ${time(lasts)}`;
  const when = `from ${time(start[bubble])} to ${time(end[bubble])}`;
  if (main[bubble] >= CAUSES.length) {
    return { title, lines: [`Rank ${rank[bubble]} idles ${when}. Causes are told for the simulated costs only: reset the sliders.`] };
  }
  const next = at[bubble] < run.slots.count ? `before ${slotName(page, run, at[bubble])}` : "after its last slot";
  const ender = endedBy[bubble];
  const lines = [
    `Rank ${rank[bubble]} idles ${when}, ${next}` +
      (ender >= 0 ? `: it waits for ${enderName(page, run, ender)}, which ends the bubble at ${time(end[bubble])}.` : "."),
    causesOf(run, bubble).map(({ cause, seconds }) => `${time(seconds)} ${page.palette.causeLabels[cause]}`).join(", ") + ".",
  ];
  if (ender >= 0) {
    lines.push(
      critical[bubble] > 1e-9 * lasts
        ? `${time(critical[bubble])} of it is on the critical path: what it waits for there also decides when the run ends.`
        : "None of it is on the critical path: without it the run would end no earlier.",
    );
  }
  lines.push(page.palette.remedies[CAUSES[main[bubble]]]);
  return { title, lines };
}

/** What a slot is, what it needs and feeds, how late it may end. */
export function slotTold(page: Page, run: Run, slot: number): Told {
  const { rank, start, end, slack, critical, stage } = run.slots;
  const lines = [
    `Rank ${rank[slot]}, ${time(start[slot])} to ${time(end[slot])}, lasts ${time(end[slot] - start[slot])}.`,
    critical[slot] && slack[slot] > 1e-9 * run.span // only as measured: what follows may start later than it could
      ? `It is on the critical path, yet could end ${time(slack[slot])} later: what follows did not start as soon as it could.`
    : critical[slot] ? "It is on the critical path: any delay of it delays the run."
    : slack[slot] <= 1e-9 * run.span ? "It has no slack: any delay of it delays the run."
    : `Slack ${time(slack[slot])}: so much later it could end without a later end of the run.`,
  ];
  if (stage[slot] >= 0) lines.push(...connections(page, run, slot), ...memoryChange(run, slot));
  if (run.operations && run.operations.kind[slot] >= 0) {
    const exposed = run.operations.exposed[slot];
    lines.push(
      exposed <= 0 ? "Its compute stream never idles: computation hides all of its communication."
      : `Its compute stream idles for ${time(exposed)} of it (${percent(exposed / (end[slot] - start[slot] || 1))}): ` +
        "communication that computation does not hide.",
    );
  }
  return { title: slotName(page, run, slot), lines };
}

function connections(page: Page, run: Run, slot: number): string[] {
  const links = linksOf(run);
  const list = (group: typeof links.in) => [...group.items.subarray(group.start[slot], group.start[slot + 1])];
  const lines: string[] = [];
  const [taken, made] = [list(links.in), list(links.out)];
  if (taken.length) {
    lines.push(`Needs ${taken.map((m) => `${messageName(page, run, m)} (there at ${time(run.messages.end[m])})`).join(" and ")}.`);
  }
  if (made.length) {
    lines.push(`Makes ${made.map((m) => `${messageName(page, run, m)} (there at ${time(run.messages.end[m])})`).join(" and ")}.`);
  }
  return lines;
}

function memoryChange(run: Run, slot: number): string[] {
  const first = slot === run.slots.first[run.slots.rank[slot]];
  let [taken, freed, held] = [0, 0, 0];
  for (const { kind, during, after } of run.levels) {
    if (kind === TRANSIENT) continue;
    const before = first ? 0 : after[slot - 1];
    taken += Math.max(0, during[slot] - before);
    freed += Math.max(0, during[slot] - after[slot]);
    held += after[slot];
  }
  const parts = [taken > 0 ? `takes ${amount(run, taken)}` : "", freed > 0 ? `frees ${amount(run, freed)}` : ""].filter(Boolean);
  return parts.length ? [`Memory: ${parts.join(" and ")} of activations; its rank then keeps ${amount(run, held)}.`] : [];
}

export const TRANSIENT = "buffers of a slot";
