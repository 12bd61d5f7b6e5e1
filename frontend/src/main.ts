// The page: reads its data, draws it, and answers mouse, keyboard, sliders and search.

import { columnsOf, inflate, type Page } from "./data";
import { matches, queryOf } from "./find";
import { AXIS, type Layout, layoutOf, rowAt, rowOf, timeAt, xOf } from "./layout";
import { drawLinks, drawMemory, linksHeight, memoryTold, PANEL } from "./panels";
import { bubbleAt, CAUSES, linksOf, PAIR, type Run, runsOf, slotAt } from "./run";
import { barOf, draw, type Scene } from "./scene";
import { type Shares, sharesOf, sumsOf } from "./shares";
import { CanvasSurface, type Surface, SvgSurface } from "./surface";
import { type Theme, themeOf } from "./theme";
import { fromFragment, initial, type Target, toFragment, type View } from "./view";
import { slidersOf, timedAgain, type Timed } from "./whatif";
import { amount, bubbleTold, messageName, number, percent, slotName, slotTold, time, type Told } from "./words";

const element = <T extends HTMLElement>(id: string): T => document.getElementById(id) as T;

class Timeline {
  readonly runs: Run[];
  view: View;
  private readonly first: View;
  private shown: Run[];
  private timed: (Timed | null)[];
  private layout!: Layout;
  private theme!: Theme;
  private readonly shifts: (Float64Array | null)[];
  private readonly median: number;
  private found: { run: number; slots: number[]; at: number } | null = null;
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
    this.median = runs[0].header.opened ?? -1;
    this.view = this.restored(location.hash);
    this.controls();
    this.pointer();
    this.listen();
    this.restyle();
    this.retime();
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
    if (!run.retimed) this.paint("links", linksHeight(run), (surface) => drawLinks(surface, run, focus.rank, this.layout, this.view, this.theme));
    element("links").hidden = run.retimed || !run.header.links;
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
  private restyle(): void {
    const dark = this.view.theme === "dark" || (this.view.theme === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    this.theme = themeOf(this.page.palette, this.page.words, dark);
    this.legend();
  }

  private changed(): void {
    const fragment = toFragment(this.view, this.first);
    history.replaceState(null, "", fragment ? `#${fragment}` : location.pathname + location.search);
    for (const name of ["path", "patterns", "differences"] as const) {
      document.getElementById(name)?.setAttribute("aria-pressed", String(this.view[name]));
    }
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
  private get span(): number {
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

  private tell(): void {
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

  private legend(): void {
    const box = element("legend");
    box.replaceChildren();
    const { palette, words } = this.page;
    const used = new Set(this.runs.flatMap((run) => [...new Set(run.slots.word)]));
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
      if (this.runs.some((run) => run.header.perRank.some((rank) => rank.causes[cause]))) {
        entry(`bubble: ${palette.causeLabels[cause]}`, this.theme.causes[index]);
      }
    });
    if (this.runs.some((run) => run.operations)) {
      for (const [family, [forward, backward]] of Object.entries(palette.families)) entry(`${family} F / backward`, forward, backward);
      entry("exposed communication", palette.exposed);
    }
  }

  // Mouse.

  private hit(event: MouseEvent): { target: Target | null; text: string; run: Run; rank: number; at: number } | null {
    const box = element("lanes").getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const row = y < this.layout.view ? rowAt(this.layout, y + this.view.top) : null;
    if (!row || row.kind === "title") return null;
    const at = timeAt(this.layout, this.view, x);
    const { run, rank } = row;
    const where = { target: null, text: "", run, rank, at };
    if (x < this.layout.gutter) return { ...where, text: "label" };
    if (x > this.layout.gutter + this.layout.lanes) return { ...where, text: "bar" };
    const slot = slotAt(run, rank, at);
    if (row.kind === "stream" && row.stream === "pipeline") return { ...where, text: this.messageAt(run, rank, at) };
    if (row.kind === "stream") return { ...where, target: target("slot", run, slot), text: this.operationAt(run, rank, row.stream, slot, at) };
    const found = slot >= 0 ? target("slot", run, slot) : target("bubble", run, bubbleAt(run, rank, at));
    return { ...where, target: found };
  }

  private operationAt(run: Run, rank: number, stream: string, slot: number, at: number): string {
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
    if (k < 0) return `nothing on the ${stream} stream of ${slotName(this.page, run, slot)}`;
    const lasts = operations.length[operations.first[slot] + k];
    return `${kind[k].name}, ${this.page.palette.passes[kind[k].pass]}, of ${slotName(this.page, run, slot)} on the ${stream} stream, lasts ${time(lasts)}`;
  }

  private messageAt(run: Run, rank: number, at: number): string {
    const { out } = linksOf(run);
    const names: string[] = [];
    for (let slot = run.slots.first[rank]; slot < run.slots.first[rank + 1] && run.slots.start[slot] <= at; slot++) {
      for (let k = out.start[slot]; k < out.start[slot + 1]; k++) {
        const m = out.items[k];
        if (run.messages.start[m] <= at && at < run.messages.end[m]) names.push(messageName(this.page, run, m));
      }
    }
    return names.length ? `${names.slice(0, 4).join("; ")}${names.length > 4 ? ` and ${names.length - 4} more` : ""}` : "";
  }

  private pointer(): void {
    const stage = element("stage");
    let drag: { x: number; y: number; from: number; to: number; top: number; moved: boolean } | null = null;
    stage.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      drag = { x: event.clientX, y: event.clientY, from: this.view.from, to: this.view.to, top: this.view.top, moved: false };
    });
    window.addEventListener("pointermove", (event) => {
      if (!drag) return;
      const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
      if (!drag.moved && Math.hypot(dx, dy) < 4) return;
      drag.moved = true;
      this.hideTip();
      this.view.top = Math.max(0, drag.top - dy);
      const shift = (-dx / this.layout.lanes) * (drag.to - drag.from);
      this.look(drag.from + shift, drag.to + shift);
    });
    window.addEventListener("pointerup", (event) => {
      if (drag && !drag.moved && stage.contains(event.target as Node)) this.clicked(event);
      drag = null;
    });
    stage.addEventListener("pointermove", (event) => {
      if (!drag?.moved) this.hover(event);
    });
    stage.addEventListener("pointerleave", () => this.hideTip());
    stage.addEventListener("dblclick", (event) => {
      const hit = this.hit(event);
      if (hit?.target) this.zoomTo(hit.target);
    });
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.hideTip();
      const box = stage.getBoundingClientRect();
      if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
        const shift = ((event.deltaX || event.deltaY) / this.layout.lanes) * (this.view.to - this.view.from);
        this.look(this.view.from + shift, this.view.to + shift);
      } else this.zoom(2 ** (event.deltaY / 300), timeAt(this.layout, this.view, event.clientX - box.left));
    }, { passive: false });
  }

  private clicked(event: MouseEvent): void {
    const hit = this.hit(event);
    if (!hit) this.select(null);
    else if (hit.text === "label") this.open(hit.run.index, hit.rank);
    else {
      this.view.focus = { run: hit.run.index, rank: hit.rank };
      this.select(hit.target);
    }
  }

  private hover(event: MouseEvent): void {
    const hit = this.hit(event);
    const tip = element("tip");
    tip.replaceChildren();
    if (hit?.text === "bar" && !hit.run.retimed) {
      tip.append(line("b", `Rank ${hit.rank}: where the step goes`));
      for (const part of barOf(this.page, hit.run, hit.rank, this.theme)) {
        tip.append(line("p", `${time(part.seconds)} (${percent(part.seconds / hit.run.span)}) ${part.label}`));
      }
    } else if (hit?.text === "label") {
      const { stages, peak, peakBytes } = hit.run.header.perRank[hit.rank];
      const most = hit.run.header.memory.unit === "bytes" ? peakBytes : peak;
      tip.append(line("b", `Rank ${hit.rank}`), line("p", `stages ${stages.join(", ")}; at most ${amount(hit.run, most)} of activations. Click to open its streams.`));
    } else if (hit?.text) tip.append(line("b", hit.text));
    else if (hit?.target) {
      const told = this.told(hit.target);
      tip.append(line("b", told.title), ...told.lines.slice(0, 4).map((text) => line("p", text)));
      if (hit.run.ranks) tip.append(line("p", `Rank ${hit.rank} keeps ${memoryTold(hit.run, hit.rank, hit.at)}.`));
    }
    tip.hidden = !tip.childElementCount;
    if (tip.hidden) return;
    const right = event.clientX + 16 + tip.offsetWidth > window.innerWidth;
    tip.style.left = `${right ? Math.max(4, event.clientX - tip.offsetWidth - 12) : event.clientX + 16}px`;
    const low = event.clientY + 18 + tip.offsetHeight > window.innerHeight;
    tip.style.top = `${low ? Math.max(4, event.clientY - tip.offsetHeight - 12) : event.clientY + 18}px`;
  }

  private hideTip(): void {
    element("tip").hidden = true;
  }

  zoomTo(target: Target): void {
    const { start, end } = target.what === "slot" ? this.shown[target.run].slots : this.shown[target.run].bubbles;
    const length = (end[target.index] - start[target.index]) || this.span * 1e-6;
    this.select(target, true);
    this.look(start[target.index] - length * 0.15, end[target.index] + length * 0.15);
  }

  // Keyboard.

  private listen(): void {
    const stage = element("stage");
    stage.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (this.pressed(event.key)) event.preventDefault();
    });
    document.addEventListener("keydown", (event) => {
      const typing = event.target instanceof HTMLInputElement;
      if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "/") {
        event.preventDefault();
        element("search").focus();
      } else if (event.key === "?") element<HTMLDetailsElement>("keys").open = !element<HTMLDetailsElement>("keys").open;
    });
    window.addEventListener("resize", () => this.redraw());
    window.addEventListener("hashchange", () => {
      this.view = this.restored(location.hash);
      this.restyle();
      this.setSliders();
      this.retime();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.restyle();
      this.redraw();
    });
  }

  private pressed(key: string): boolean {
    const { from, to, selected, focus } = this.view;
    const [length, middle] = [to - from, (from + to) / 2];
    const keys: Record<string, () => void> = {
      ArrowLeft: () => this.look(from - length / 5, to - length / 5),
      ArrowRight: () => this.look(from + length / 5, to + length / 5),
      ArrowUp: () => this.zoom(0.7, middle),
      ArrowDown: () => this.zoom(1 / 0.7, middle),
      "+": () => this.zoom(0.7, middle),
      "=": () => this.zoom(0.7, middle),
      "-": () => this.zoom(1 / 0.7, middle),
      "0": () => this.fit(),
      Escape: () => this.select(null),
      n: () => this.nextBubble(1),
      N: () => this.nextBubble(-1),
      m: () => this.nextOfMicrobatch(1),
      M: () => this.nextOfMicrobatch(-1),
      "]": () => this.nextOnRank(1),
      "[": () => this.nextOnRank(-1),
      j: () => this.nextRank(1),
      k: () => this.nextRank(-1),
      e: () => this.open(focus.run, focus.rank),
      c: () => this.toggle("path"),
      t: () => this.toggle("patterns"),
      Enter: () => selected && this.zoomTo(selected),
    };
    const action = keys[key];
    action?.();
    return action !== undefined;
  }

  private toggle(name: "path" | "patterns" | "differences"): void {
    this.view[name] = !this.view[name];
    this.changed();
  }

  private nextRank(step: number): void {
    const { run, rank } = this.view.focus;
    const next = rank + step;
    if (next < 0 || next >= this.runs[run].ranks) return;
    this.view.focus = { run, rank: next };
    const at = this.view.selected ? this.selectedTime() : (this.view.from + this.view.to) / 2;
    const slot = slotAt(this.shown[run], next, at);
    this.select(slot >= 0 ? { what: "slot", run, index: slot } : target("bubble", this.shown[run], bubbleAt(this.shown[run], next, at)), true);
  }

  private selectedTime(): number {
    const { what, run, index } = this.view.selected!;
    const { start, end } = what === "slot" ? this.shown[run].slots : this.shown[run].bubbles;
    return (start[index] + end[index]) / 2;
  }

  private nextBubble(step: number): void {
    const { run, rank } = this.view.focus;
    const { bubbles } = this.shown[run];
    if (!bubbles.count) return;
    const { selected } = this.view;
    let next: number;
    if (selected?.what === "bubble" && selected.run === run) next = selected.index + step;
    else {
      const at = selected ? this.selectedTime() : this.view.from;
      next = bubbles.first[rank];
      while (next < bubbles.first[rank + 1] && bubbles.start[next] < at) next++;
      if (step < 0) next--;
    }
    this.select({ what: "bubble", run, index: (next + bubbles.count) % bubbles.count }, true);
  }

  private nextOnRank(step: number): void {
    const { run, rank } = this.view.focus;
    const { slots } = this.shown[run];
    const { selected } = this.view;
    let next: number;
    if (selected?.what === "slot") next = selected.index + step;
    else if (selected) next = step > 0 ? this.shown[run].bubbles.at[selected.index] : this.shown[run].bubbles.at[selected.index] - 1;
    else next = slots.first[rank];
    if (next >= slots.first[rank] && next < slots.first[rank + 1]) this.select({ what: "slot", run, index: next }, true);
  }

  /** To the next slot, in time, of the selected slot's micro-batch; to its forward of micro-batch 0 without one. */
  private nextOfMicrobatch(step: number): void {
    const { run } = this.view.focus;
    const { selected } = this.view;
    const slots = this.shown[run].slots;
    const microbatch = selected?.what === "slot" ? slots.microbatch[selected.index] : 0;
    const found = matches(this.shown[run], { rank: null, stage: null, microbatch, kind: null });
    const at = selected?.what === "slot" ? found.indexOf(selected.index) : -1;
    const next = found[(at + step + found.length) % found.length];
    if (next !== undefined) this.select({ what: "slot", run, index: next }, true);
  }

  // Controls.

  private controls(): void {
    const click = (id: string, action: () => void) => document.getElementById(id)?.addEventListener("click", action);
    click("fit", () => this.fit());
    click("path", () => this.toggle("path"));
    click("patterns", () => this.toggle("patterns"));
    click("differences", () => this.toggle("differences"));
    click("theme", () => {
      this.view.theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      this.restyle();
      this.changed();
    });
    click("svg", () => save(new Blob([this.svg()], { type: "image/svg+xml" }), "timeline.svg"));
    click("png", () => this.picture().toBlob((blob) => blob && save(blob, "timeline.png"), "image/png"));
    click("median", () => {
      if (this.median < 0) return;
      const rank = this.runs[0].slots.rank[this.median];
      this.view.open.add(`0.${rank}`);
      this.zoomTo({ what: "slot", run: 0, index: this.median });
    });
    element("median").hidden = this.median < 0;
    element("differences").hidden = !this.shifts.some((shift, index) => shift && index > 0);
    element("find").addEventListener("submit", (event) => {
      event.preventDefault();
      this.search(element<HTMLInputElement>("search").value);
    });
    this.sliders();
  }

  search(text: string): void {
    const answer = element("found");
    const query = queryOf(text);
    if (!query) {
      this.found = null;
      answer.textContent = text.trim() ? "Search for rank 3, stage 2, mb 17 or 2F17." : "";
      return;
    }
    const run = this.view.focus.run;
    const slots = matches(this.shown[run], query);
    const same = this.found && this.found.run === run && this.found.slots.join() === slots.join();
    this.found = { run, slots, at: same ? (this.found!.at + 1) % Math.max(slots.length, 1) : 0 };
    if (!slots.length) answer.textContent = "Nothing found.";
    else {
      answer.textContent = `${this.found.at + 1} of ${slots.length}: Enter for the next`;
      this.select({ what: "slot", run, index: slots[this.found.at] }, true);
    }
  }

  private sliders(): void {
    const box = element("sliders");
    const known = new Map(this.runs.flatMap((run) => slidersOf(run)).map((slider) => [slider.name, slider]));
    for (const { name, label, from, to, step, start } of known.values()) {
      const row = document.createElement("label");
      const input = document.createElement("input");
      Object.assign(input, { type: "range", min: from, max: to, step, value: start, id: `slider-${name}` });
      input.min = String(from);
      input.max = String(to);
      input.step = "any";
      input.value = String(this.view.whatif[name] ?? start);
      input.dataset.start = String(start);
      input.dataset.step = String(step);
      const output = document.createElement("output");
      output.id = `value-${name}`;
      row.append(line("span", label), input, output);
      box.append(row);
      input.addEventListener("input", () => {
        const value = Math.round(Number(input.value) / step) * step;
        this.set(name, Number((Math.abs(value - start) < step / 2 ? start : value).toPrecision(6)));
      });
    }
    element("reset").addEventListener("click", () => {
      this.view.whatif = {};
      this.setSliders();
      this.retime();
    });
    element("exact").textContent = this.runs.map((run) => run.header.costs.why).filter((why, k, all) => why && all.indexOf(why) === k).join(" ");
  }

  /** Moves one slider; `F`, `I`, `W`, `B` and `FB` are factors, `latency` seconds, `imbalance` a share. */
  set(name: string, value: number): void {
    const start = Number(element<HTMLInputElement>(`slider-${name}`).dataset.start);
    const others = Object.entries(this.view.whatif).filter(([key]) => key !== name);
    this.view.whatif = Object.fromEntries(value === start ? others : [...others, [name, value]]);
    this.setSliders();
    this.retime();
  }

  private setSliders(): void {
    for (const input of document.querySelectorAll<HTMLInputElement>("#sliders input")) {
      const name = input.id.replace("slider-", "");
      const value = this.view.whatif[name] ?? Number(input.dataset.start);
      if (Math.abs(Number(input.value) - value) > 1e-12) input.value = String(value);
      element(`value-${name}`).textContent = this.worth(name, value);
    }
  }

  /** A slider's value in words: a factor with the seconds it makes, where those are one number. */
  private worth(name: string, value: number): string {
    if (name === "latency") return time(value);
    if (name === "imbalance") return `${value >= 0 ? "+" : ""}${percent(value)}`;
    const run = this.runs[0];
    const table = run.header.costs.tables?.includes(name) ? run.columns.get(`${run.header.prefix}.cost.${name}`) : undefined;
    const seconds = table?.every((one) => one === table[0]) ? ` = ${time(table[0] * value)}` : "";
    return `× ${number(value)}${seconds}`;
  }

  /** Times every run again under the sliders, or shows it as simulated. */
  private retime(): void {
    const changed = Object.keys(this.view.whatif).length > 0;
    const whole = this.view.from === 0 && this.view.to === this.span;
    this.timed = this.runs.map((run) => (changed ? timedAgain(run, this.view.whatif) : null));
    this.shown = this.runs.map((run, index) => this.timed[index]?.run ?? run);
    if (whole) this.view.to = this.span;
    if (this.view.selected?.what === "bubble" && changed) this.view.selected = null;
    this.setSliders();
    element("outcome").replaceChildren(...this.runs.map((run, index) => line("p", this.outcome(run, this.timed[index]))));
    element<HTMLButtonElement>("reset").disabled = !changed;
    if (changed) element<HTMLDetailsElement>("whatif").open = true;
    this.tell();
    this.changed();
  }

  private outcome(run: Run, timed: Timed | null): string {
    const { makespan, bubble_rate: rate } = run.header.figures as { makespan: number; bubble_rate: number };
    const name = this.runs.length > 1 ? `${run.header.name}: ` : "";
    if (!timed) return `${name}${time(makespan)}, bubble rate ${percent(rate)}, as simulated.`;
    const change = makespan ? timed.makespan / makespan - 1 : 0;
    const about = run.header.costs.exact ? "" : "about ";
    return (
      `${name}${about}${time(timed.makespan)} instead of ${time(makespan)} (${change >= 0 ? "+" : ""}${percent(change)}), ` +
      `bubble rate ${percent(timed.bubbleRate)} instead of ${percent(rate)}.`
    );
  }

  // Export.

  /** The view as SVG: lanes, axis, memory and messages. */
  svg(): string {
    const surface = new SvgSurface(this.layout.width, this.exportHeight, this.runs.map((run) => run.header.title).join("; "));
    this.paintAll(surface, (y, picture) => surface.moved(0, y, picture));
    return surface.toString();
  }

  private get exportHeight(): number {
    const run = this.shown[this.view.focus.run];
    return this.layout.view + AXIS + PANEL + (run.retimed ? 0 : linksHeight(run));
  }

  private picture(): HTMLCanvasElement {
    const canvas = document.createElement("canvas");
    const sources = ["lanes", "memory", "links"].map((id) => element<HTMLCanvasElement>(id)).filter((one) => !one.hidden);
    canvas.width = sources[0].width;
    canvas.height = sources.reduce((sum, one) => sum + one.height, 0);
    const context = canvas.getContext("2d")!;
    let y = 0;
    for (const source of sources) {
      context.drawImage(source, 0, y);
      y += source.height;
    }
    return canvas;
  }

  private paintAll(surface: Surface, at: (y: number, picture: () => void) => void): void {
    const { focus } = this.view;
    const run = this.shown[focus.run];
    at(0, () => draw(this.scene, surface));
    at(this.layout.view + AXIS, () => drawMemory(surface, run, focus.rank, this.layout, this.view, this.theme));
    if (!run.retimed) {
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

  get timings(): (Timed | null)[] {
    return this.timed;
  }
}

function target(what: Target["what"], run: Run, index: number): Target | null {
  return index < 0 ? null : { what, run: run.index, index };
}

/** How much later each slot starts than in the first run; null where the two run different orders. */
function shiftsOf(first: Run, run: Run): Float64Array | null {
  const same = (name: "word" | "stage" | "microbatch" | "first" | "pairMicrobatch") =>
    run.slots[name].length === first.slots[name].length && run.slots[name].every((value: number, k: number) => value === first.slots[name][k]);
  if (!(["first", "word", "stage", "microbatch", "pairMicrobatch"] as const).every(same)) return null;
  return run.slots.start.map((start, slot) => start - first.slots.start[slot]);
}

function line(tag: string, text: string, style = ""): HTMLElement {
  const made = document.createElement(tag);
  made.textContent = text;
  if (style) made.className = style;
  return made;
}

function save(blob: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function start(): Promise<void> {
  const page = JSON.parse(element("header").textContent) as Page;
  const columns = columnsOf(page.layout, await inflate(element("columns").textContent));
  element("columns").remove();
  (window as unknown as { timeline: Timeline }).timeline = new Timeline(page, runsOf(page, columns));
}

void start();
