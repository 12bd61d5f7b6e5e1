// The timeline: what is looked at and selected, its drawing, its sentences, its export.

import type { Page } from "./data";
import { element, line } from "./dom";
import { AXIS, type Layout, layoutOf, rowOf, xOf } from "./layout";
import { legend, legendOf } from "./legend";
import { drawLinks, drawMemory, linksHeight, PANEL } from "./panels";
import type { Run } from "./run";
import { draw, type Scene } from "./scene";
import { type Shares, sharesOf, sumsOf } from "./shares";
import { CanvasSurface, type Surface, SvgSurface } from "./surface";
import { type Theme, themeOf } from "./theme";
import { fromFragment, initial, type Target, toFragment, type View } from "./view";
import { type Slider, slidersOf, timedAgain, type Timed } from "./whatif";
import { bubbleTold, slotTold, time, type Told } from "./words";

export class Timeline {
  readonly runs: Run[];
  view: View;
  shown: Run[]; // as simulated, or timed again
  timed: (Timed | null)[];
  layout!: Layout;
  theme!: Theme;
  readonly shifts: (Float64Array | null)[];
  readonly sliders: Slider[];
  readonly followers: (() => void)[] = []; // called after every change
  private readonly first: View;
  private waiting = false;
  drawnIn = 0; // milliseconds of the last drawing

  constructor(readonly page: Page, runs: Run[]) {
    this.runs = this.shown = runs;
    this.timed = runs.map(() => null);
    const span = Math.max(...runs.map((run) => run.span));
    const fullest = runs[0].header.perRank.reduce((best, rank, r, all) => {
      const of = (one: typeof rank) => (runs[0].header.memory.unit === "bytes" ? one.peakBytes : one.peak);
      return of(rank) > of(all[best]) ? r : best;
    }, 0);
    this.first = initial(span, { run: 0, rank: fullest });
    this.shifts = runs.map((run) => shiftsOf(runs[0], run));
    this.sliders = [...new Map(runs.flatMap(slidersOf).map((slider) => [slider.name, slider])).values()];
    this.view = this.restored(location.hash);
  }

  /** The view of an address, as far as it fits this page. */
  private restored(fragment: string): View {
    const view = fromFragment(fragment, this.first);
    const { selected, focus } = view;
    if (selected) {
      const run = this.runs[selected.run];
      const count = run && (selected.what === "slot" ? run.slots.count : run.bubbles.count);
      if (!count || selected.index >= count) view.selected = null;
    }
    if (!this.runs[focus.run] || focus.rank >= this.runs[focus.run].ranks) view.focus = this.first.focus;
    return view;
  }

  /** Looks at what an address says. */
  restore(fragment: string): void {
    this.view = this.restored(fragment);
    this.restyle();
    this.retime();
  }

  // Drawing.

  get scene(): Scene {
    return { page: this.page, runs: this.shown, view: this.view, layout: this.layout, theme: this.theme, shifts: this.shifts };
  }

  /** Draws at the next frame. */
  redraw(): void {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.drawNow();
    });
  }

  drawNow(): void {
    const before = performance.now();
    this.lay();
    this.view.top = Math.min(this.view.top, Math.max(0, this.layout.height - this.layout.view));
    this.paint("lanes", this.layout.view + AXIS, (surface) => draw(this.scene, surface));
    const { focus } = this.view;
    const run = this.shown[focus.run];
    this.paint("memory", PANEL, (surface) => drawMemory(surface, run, focus.rank, this.layout, this.view, this.theme));
    const hasLinks = this.hasLinks(run);
    if (hasLinks) this.paint("links", linksHeight(run), (surface) => drawLinks(surface, run, focus.rank, this.layout, this.view, this.theme));
    element("links").hidden = !hasLinks;
    this.drawnIn = performance.now() - before;
    document.documentElement.dataset.ready ??= String(Math.round(performance.now())); // milliseconds since it was opened
  }

  private lay(): void {
    this.layout = layoutOf(this.shown, this.view, element("stage").clientWidth, this.room());
  }

  /** Pixels that the lanes may take: most of the window. */
  private room(): number {
    return Math.max(240, Math.min(0.72 * window.innerHeight, window.innerHeight - 250) - AXIS);
  }

  private paint(id: string, height: number, picture: (surface: Surface) => void): void {
    const canvas = element<HTMLCanvasElement>(id);
    const ratio = window.devicePixelRatio || 1;
    const [wide, tall] = [Math.round(this.layout.width * ratio), Math.round(height * ratio)];
    if (canvas.width !== wide || canvas.height !== tall) {
      canvas.width = wide;
      canvas.height = tall;
      canvas.style.height = `${height}px`;
    }
    picture(new CanvasSurface(canvas.getContext("2d", { alpha: false })!, ratio));
  }

  /** Takes over the theme, and what the page shows of the view beside the drawing. */
  restyle(): void {
    const dark = this.view.theme === "dark" || (this.view.theme === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    this.theme = themeOf(this.page.palette, this.page.words, dark);
    legend(this);
  }

  changed(): void {
    const fragment = toFragment(this.view, this.first);
    if (location.protocol !== "about:")  // within a page of results there is no address to restore the view from
      history.replaceState(null, "", fragment ? `#${fragment}` : location.pathname + location.search);
    for (const follow of this.followers) follow();
    this.redraw();
  }

  // Looking.

  zoom(factor: number, at: number): void {
    const { from, to } = this.view;
    const length = Math.min(Math.max((to - from) * factor, this.span * 1e-7), this.span * 1.25);
    const share = (at - from) / (to - from);
    this.look(at - share * length, at + (1 - share) * length);
  }

  look(from: number, to: number): void {
    const length = to - from;
    const margin = length * 0.5;
    const begin = Math.min(Math.max(from, -margin), Math.max(this.span + margin - length, -margin));
    [this.view.from, this.view.to] = [begin, begin + length];
    this.changed();
  }

  /** Seconds of the longest run as shown. */
  get span(): number {
    return Math.max(...this.shown.map((run) => run.span));
  }

  fit(): void {
    [this.view.from, this.view.to, this.view.top] = [0, this.span, 0];
    this.changed();
  }

  select(target: Target | null, show = false): void {
    this.view.selected = target;
    if (target) {
      const run = this.shown[target.run];
      const { rank, start, end } = target.what === "slot" ? run.slots : run.bubbles;
      this.view.focus = { run: target.run, rank: rank[target.index] };
      if (show) this.reveal(target.run, rank[target.index], start[target.index], end[target.index]);
    }
    this.tell();
    this.changed();
  }

  /** Moves the view so that an interval of a rank lies in it. */
  private reveal(run: number, rank: number, start: number, end: number): void {
    const { from, to } = this.view;
    if (start < from || end > to) {
      const length = Math.max(to - from, (end - start) * 1.5);
      [this.view.from, this.view.to] = [(start + end - length) / 2, (start + end + length) / 2];
    }
    this.lay();
    const row = rowOf(this.layout, run, rank);
    if (row && row.y < this.view.top) this.view.top = row.y;
    else if (row && row.y + row.height > this.view.top + this.layout.view) this.view.top = row.y + row.height - this.layout.view;
  }

  toggle(name: "path" | "patterns" | "differences"): void {
    this.view[name] = !this.view[name];
    this.changed();
  }

  open(run: number, rank: number): void {
    const key = `${run}.${rank}`;
    if (!this.view.open.delete(key)) this.view.open.add(key);
    this.view.focus = { run, rank };
    this.changed();
  }

  // Telling.

  told(target: Target): Told {
    const run = this.shown[target.run];
    const told = target.what === "slot" ? slotTold(this.page, run, target.index) : bubbleTold(this.page, run, target.index);
    const shift = this.shifts[target.run];
    if (target.what === "slot" && shift && target.run > 0) {
      const later = shift[target.index];
      told.lines.push(`Starts ${time(Math.abs(later))} ${later < 0 ? "earlier" : "later"} than in ${this.runs[0].header.name}.`);
    }
    return told;
  }

  tell(): void {
    const box = element("told");
    const { selected } = this.view;
    box.replaceChildren();
    if (!selected) {
      box.append(line("p", "Select a block or a bubble: click it, or press n for the next bubble. Press ? for all keys.", "hint"));
      return;
    }
    const told = this.told(selected);
    box.append(line("h2", this.runs.length > 1 ? `${told.title} (${this.runs[selected.run].header.name})` : told.title));
    for (const text of told.lines) box.append(line("p", text));
  }

  zoomTo(target: Target): void {
    const { start, end } = target.what === "slot" ? this.shown[target.run].slots : this.shown[target.run].bubbles;
    const length = (end[target.index] - start[target.index]) || this.span * 1e-6;
    this.select(target, true);
    this.look(start[target.index] - length * 0.15, end[target.index] + length * 0.15);
  }

  // What if.

  /** Moves one slider; `F`, `I`, `W`, `B` and `FB` are factors, `latency` seconds, `imbalance` a share. */
  set(name: string, value: number): void {
    const others = Object.entries(this.view.whatif).filter(([key]) => key !== name);
    const { start } = this.sliders.find((slider) => slider.name === name)!;
    this.view.whatif = Object.fromEntries(value === start ? others : [...others, [name, value]]);
    this.retime();
  }

  /** Times every run again under the sliders, or shows it as simulated. */
  retime(): void {
    const changed = Object.keys(this.view.whatif).length > 0;
    const whole = this.view.from === 0 && this.view.to === this.span;
    this.timed = this.runs.map((run) => (changed ? timedAgain(run, this.view.whatif) : null));
    this.shown = this.runs.map((run, index) => this.timed[index]?.run ?? run);
    if (whole) this.view.to = this.span;
    if (this.view.selected?.what === "bubble" && changed) this.view.selected = null;
    this.tell();
    this.changed();
  }

  // Export.

  /** The view as SVG: lanes, axis, memory and messages, and what the colours mean. */
  svg(): string {
    const { width } = this.layout;
    const [height, below] = [this.exportHeight, legendOf(this, width)];
    const surface = new SvgSurface(width, height + below.height, this.runs.map((run) => run.header.title).join("; "));
    this.paintAll(surface, (y, picture) => surface.moved(0, y, picture));
    surface.moved(0, height, () => below.draw(surface));
    return surface.toString();
  }

  private get exportHeight(): number {
    const run = this.shown[this.view.focus.run];
    return this.layout.view + AXIS + PANEL + (this.hasLinks(run) ? linksHeight(run) : 0);
  }

  /** Whether a rank's messages and links are drawn: none are known of an order timed again in the page. */
  private hasLinks(run: Run): boolean {
    return !run.retimed && Boolean(run.header.links);
  }

  picture(): HTMLCanvasElement {
    const canvas = document.createElement("canvas");
    const sources = ["lanes", "memory", "links"].map((id) => element<HTMLCanvasElement>(id)).filter((one) => !one.hidden);
    const ratio = sources[0].width / this.layout.width;
    const height = sources.reduce((sum, one) => sum + one.height, 0);
    const below = legendOf(this, this.layout.width);
    canvas.width = sources[0].width;
    canvas.height = height + Math.ceil(below.height * ratio);
    const context = canvas.getContext("2d")!;
    let y = 0;
    for (const source of sources) {
      context.drawImage(source, 0, y);
      y += source.height;
    }
    const surface = new CanvasSurface(context, ratio);
    context.translate(0, height / ratio);
    below.draw(surface);
    return canvas;
  }

  private paintAll(surface: Surface, at: (y: number, picture: () => void) => void): void {
    const { focus } = this.view;
    const run = this.shown[focus.run];
    at(0, () => draw(this.scene, surface));
    at(this.layout.view + AXIS, () => drawMemory(surface, run, focus.rank, this.layout, this.view, this.theme));
    if (this.hasLinks(run)) {
      at(this.layout.view + AXIS + PANEL, () => drawLinks(surface, run, focus.rank, this.layout, this.view, this.theme));
    }
  }

  // For tests, and whoever opens the console.

  /** Shares of equal parts of [from, to] of a rank, as lanes too dense for blocks are drawn. */
  shares(run: number, rank: number, from: number, to: number, columns: number): Shares {
    return sharesOf(this.shown[run], sumsOf(this.shown[run]), rank, from, to, columns);
  }

  /** Where a slot or bubble is drawn, in pixels of the window: its middle. */
  place(target: Target): { x: number; y: number } {
    const run = this.shown[target.run];
    const { rank, start, end } = target.what === "slot" ? run.slots : run.bubbles;
    const box = element("lanes").getBoundingClientRect();
    const row = rowOf(this.layout, target.run, rank[target.index])!;
    const middle = (start[target.index] + end[target.index]) / 2;
    return { x: box.left + xOf(this.layout, this.view, middle), y: box.top + row.y - this.view.top + row.height / 2 };
  }

}

/** How much later each slot starts than in the first run; null where the two run different orders. */
function shiftsOf(first: Run, run: Run): Float64Array | null {
  const same = (name: "word" | "stage" | "microbatch" | "first" | "pairMicrobatch") =>
    run.slots[name].length === first.slots[name].length && run.slots[name].every((value: number, k: number) => value === first.slots[name][k]);
  if (!(["first", "word", "stage", "microbatch", "pairMicrobatch"] as const).every(same)) return null;
  return run.slots.start.map((start, slot) => start - first.slots.start[slot]);
}
