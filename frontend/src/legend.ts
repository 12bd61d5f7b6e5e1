// What the colours mean: beside the drawing, and under one that is exported.

import { element } from "./dom";
import { CAUSES, PAIR } from "./run";
import { EARLIER, LATER } from "./scene";
import { FONT, type Surface } from "./surface";
import type { Timeline } from "./timeline";

/** A meaning, and the colour it has, or two, one over the other. */
interface Entry {
  label: string;
  colours: string[];
}

const SIZE = 12; // pixels of a label's font
const LINE = 20;
const MARGIN = 8;
const SWATCH = 14;
const GAP = 18;

function entriesOf(timeline: Timeline): Entry[] {
  const { palette, words } = timeline.page;
  const used = new Set(timeline.runs.flatMap((run) => [...new Set(run.slots.word)]));
  const entries: Entry[] = [];
  const entry = (label: string, ...colours: string[]) => entries.push({ label, colours });
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
  return entries;
}

export function legend(timeline: Timeline): void {
  element("legend").replaceChildren(...entriesOf(timeline).map(({ label, colours: [one, two] }) => {
    const item = document.createElement("li");
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = two ? `linear-gradient(${one} 50%, ${two} 50%)` : one;
    item.append(swatch, label);
    return item;
  }));
}

/** The legend of a drawing `width` pixels wide: its height, and what draws it from the origin on. */
export function legendOf(timeline: Timeline, width: number): { height: number; draw: (surface: Surface) => void } {
  const context = document.createElement("canvas").getContext("2d")!;
  context.font = `${SIZE}px ${FONT}`;
  let [x, y] = [MARGIN, MARGIN];
  const placed = entriesOf(timeline).map((entry) => {
    const taken = SWATCH + 5 + context.measureText(entry.label).width;
    if (x > MARGIN && x + taken > width - MARGIN) [x, y] = [MARGIN, y + LINE];
    const at = { ...entry, x, y };
    x += taken + GAP;
    return at;
  });
  const height = y + LINE + MARGIN;
  const draw = (surface: Surface) => {
    const { background, ink } = timeline.theme;
    surface.rect(0, 0, width, height, background);
    for (const { label, colours, x, y } of placed) {
      colours.forEach((colour, index) => surface.rect(x, y + 3 + (index * SWATCH) / colours.length, SWATCH, SWATCH / colours.length, colour));
      surface.text(x + SWATCH + 5, y + 3 + SWATCH / 2, label, SIZE, ink, "left");
    }
  };
  return { height, draw };
}
