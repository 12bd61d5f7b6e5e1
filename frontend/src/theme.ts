// Colours of the drawing in light and dark, from the one palette of all views.

import type { Palette } from "./data";
import { CAUSES } from "./run";
import { BANDS } from "./shares";

export interface Theme {
  dark: boolean;
  background: string;
  ink: string; // text on the background
  faint: string;
  grid: string;
  block: string; // text in blocks
  accent: string; // selection
  critical: string;
  idle: string; // a bubble whose cause is not told
  causes: string[];
  kinds: string[]; // by index of Page.words
  bandPixels: Uint32Array; // by band
  causePixels: Uint32Array; // by cause, and at the end idle
  backgroundPixel: number;
}

export function themeOf(palette: Palette, words: string[], dark: boolean): Theme {
  const background = dark ? "#15181d" : "#ffffff";
  const hues: Record<string, string> = {
    waits_for_forward: palette.kinds.F, waits_for_gradient: palette.kinds.B,
    waits_for_transfer: palette.families.combine[1], blocked_by_order: palette.families.dispatch[1],
  }; // what the light tints are tints of
  const causes = CAUSES.map((cause) => (dark ? mixed(hues[cause] ?? palette.causes[cause], background, 0.34) : palette.causes[cause]));
  const kinds = words.map((word) => palette.kinds[word] ?? "#cccccc");
  const idle = dark ? "#2a2f37" : "#f1f1f1";
  return {
    dark, background, causes, kinds, idle,
    ink: dark ? "#e8eaed" : palette.ink,
    faint: dark ? "#a3abb7" : "#5c6470",
    grid: dark ? "#2b3038" : "#e9ebee",
    block: palette.ink,
    accent: dark ? "#ffffff" : "#000000",
    critical: dark ? "#ff6b6b" : "#c4161c",
    bandPixels: Uint32Array.from(BANDS.map((word) => pixel(kinds[word]))),
    causePixels: Uint32Array.from([...causes, idle].map(pixel)),
    backgroundPixel: pixel(background),
  };
}

/** `share` of one colour and the rest of another, both as #rrggbb. */
export function mixed(one: string, other: string, share: number): string {
  const channels = [1, 3, 5].map((at) => {
    const [a, b] = [one, other].map((colour) => parseInt(colour.slice(at, at + 2), 16));
    return Math.round(a * share + b * (1 - share)).toString(16).padStart(2, "0");
  });
  return `#${channels.join("")}`;
}

/** A colour as a canvas stores it in memory, little end first. */
export function pixel(colour: string): number {
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}
