// What the colours mean.

import { element } from "./dom";
import { CAUSES, PAIR } from "./run";
import { EARLIER, LATER } from "./scene";
import type { Timeline } from "./timeline";

export function legend(timeline: Timeline): void {
  const box = element("legend");
  box.replaceChildren();
  const { palette, words } = timeline.page;
  const used = new Set(timeline.runs.flatMap((run) => [...new Set(run.slots.word)]));
  const entry = (label: string, ...colours: string[]) => {
    const item = document.createElement("li");
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = colours.length > 1 ? `linear-gradient(${colours[0]} 50%, ${colours[1]} 50%)` : colours[0];
    item.append(swatch, label);
    box.append(item);
  };
  words.forEach((word, index) => {
    if (!used.has(index) && !(used.has(PAIR) && (word === "F" || word === "B"))) return;
    if (index === PAIR) entry(palette.labels[word], palette.kinds.F, palette.kinds.B);
    else entry(palette.labels[word], palette.kinds[word]);
  });
  CAUSES.forEach((cause, index) => {
    if (timeline.runs.some((run) => run.header.perRank.some((rank) => rank.causes[cause]))) {
      entry(`bubble: ${palette.causeLabels[cause]}`, timeline.theme.causes[index]);
    }
  });
  if (timeline.runs.some((run) => run.operations)) {
    for (const [family, [forward, backward]] of Object.entries(palette.families)) entry(`${family} F / backward`, forward, backward);
    entry("exposed communication", palette.exposed);
  }
  if (timeline.shifts.some((shift, index) => shift && index > 0)) {
    entry("differences: starts earlier", EARLIER);
    entry(`differences: starts later than in ${timeline.runs[0].header.name}`, LATER);
  }
}
