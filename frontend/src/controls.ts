// Buttons, search, and the sliders of what-if.

import { element, line, save } from "./dom";
import { matches, queryOf } from "./find";
import type { Run } from "./run";
import type { Timeline } from "./timeline";
import type { Slider, Timed } from "./whatif";
import { number, percent, time } from "./words";

export function controls(timeline: Timeline): void {
  buttons(timeline);
  search(timeline);
  sliders(timeline);
  window.addEventListener("resize", () => timeline.redraw());
  window.addEventListener("hashchange", () => timeline.restore(location.hash));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    timeline.restyle();
    timeline.redraw();
  });
}

function buttons(timeline: Timeline): void {
  const click = (id: string, action: () => void) => element(id).addEventListener("click", action);
  const flags = ["path", "patterns", "differences"] as const;
  for (const name of flags) click(name, () => timeline.toggle(name));
  timeline.followers.push(() => {
    for (const name of flags) element(name).setAttribute("aria-pressed", String(timeline.view[name]));
  });
  click("fit", () => timeline.fit());
  click("theme", () => {
    timeline.view.theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    timeline.restyle();
    timeline.changed();
  });
  click("svg", () => save(new Blob([timeline.svg()], { type: "image/svg+xml" }), "timeline.svg"));
  click("png", () => timeline.picture().toBlob((blob) => blob && save(blob, "timeline.png"), "image/png"));
  const median = timeline.runs[0].header.opened;
  element("median").hidden = median === null;
  if (median !== null) {
    click("median", () => {
      timeline.view.open.add(`0.${timeline.runs[0].slots.rank[median]}`);
      timeline.zoomTo({ what: "slot", run: 0, index: median });
    });
  }
  element("differences").hidden = !timeline.shifts.some((shift, index) => shift && index > 0);
}

function search(timeline: Timeline): void {
  let asked = ""; // of which run, and what
  let at = 0;
  element("find").addEventListener("submit", (event) => {
    event.preventDefault();
    const answer = element("found");
    const text = element<HTMLInputElement>("search").value;
    const query = queryOf(text);
    if (!query) {
      answer.textContent = text.trim() ? "Search for rank 3, stage 2, mb 17 or 2F17." : "";
      return;
    }
    const { run } = timeline.view.focus;
    const slots = matches(timeline.shown[run], query);
    at = asked === `${run} ${text}` ? (at + 1) % Math.max(slots.length, 1) : 0;
    asked = `${run} ${text}`;
    answer.textContent = slots.length ? `${at + 1} of ${slots.length}: Enter for the next` : "Nothing found.";
    if (slots.length) timeline.select({ what: "slot", run, index: slots[at] }, true);
  });
}

function sliders(timeline: Timeline): void {
  for (const slider of timeline.sliders) element("sliders").append(row(timeline, slider));
  element("reset").addEventListener("click", () => {
    timeline.view.whatif = {};
    timeline.retime();
  });
  element("exact").textContent = [...new Set(timeline.runs.map((run) => run.header.costs.why))].filter(Boolean).join(" ");
  timeline.followers.push(() => {
    const changed = Object.keys(timeline.view.whatif).length > 0;
    element("outcome").replaceChildren(...timeline.runs.map((run, index) => line("p", outcome(timeline, run, timeline.timed[index]))));
    if (changed) element("outcome").append(line("p", "The tables below stay as simulated."));
    element<HTMLButtonElement>("reset").disabled = !changed;
    if (changed) element<HTMLDetailsElement>("whatif").open = true;
  });
}

function row(timeline: Timeline, { name, label, from, to, step, start }: Slider): HTMLElement {
  const made = document.createElement("label");
  const input = document.createElement("input");
  const output = document.createElement("output");
  Object.assign(input, { type: "range", min: String(from), max: String(to), step: "any", id: `slider-${name}` });
  output.id = `value-${name}`;
  made.append(line("span", label), input, output);
  input.addEventListener("input", () => {
    const value = Math.round(Number(input.value) / step) * step;
    timeline.set(name, Number((Math.abs(value - start) < step / 2 ? start : value).toPrecision(6)));
  });
  timeline.followers.push(() => {
    const value = timeline.view.whatif[name] ?? start;
    if (Math.abs(Number(input.value) - value) > 1e-12) input.value = String(value);
    output.textContent = worth(timeline, name, value);
  });
  return made;
}

/** A slider's value in words: a factor with the seconds it makes, where those are one number. */
function worth(timeline: Timeline, name: string, value: number): string {
  if (name === "latency") return time(value);
  if (name === "imbalance") return `${value >= 0 ? "+" : ""}${percent(value)}`;
  const run = timeline.runs[0];
  const table = run.header.costs.tables?.includes(name) ? run.columns.get(`${run.header.prefix}.cost.${name}`) : undefined;
  const seconds = table?.every((one) => one === table[0]) ? ` = ${time(table[0] * value)}` : "";
  return `× ${number(value)}${seconds}`;
}

function outcome(timeline: Timeline, run: Run, timed: Timed | null): string {
  const { makespan, bubble_rate: rate } = run.header.figures as { makespan: number; bubble_rate: number };
  const name = timeline.runs.length > 1 ? `${run.header.name}: ` : "";
  if (!timed) return `${name}${time(makespan)}, bubble rate ${percent(rate)}, as simulated.`;
  const change = makespan ? timed.makespan / makespan - 1 : 0;
  const about = run.header.costs.exact ? "" : "about ";
  return (
    `${name}${about}${time(timed.makespan)} instead of ${time(makespan)} (${change >= 0 ? "+" : ""}${percent(change)}), ` +
    `bubble rate ${percent(timed.bubbleRate)} instead of ${percent(rate)}.`
  );
}
