import { describe, expect, it } from "vitest";
import { columnsOf, inflate, type Page } from "../src/data";
import { matches, queryOf } from "../src/find";
import { ticksOf } from "../src/layout";
import { stackOf } from "../src/panels";
import { bubbleAt, CAUSES, groupedBy, slotAt } from "../src/run";
import { BANDS, sharesOf, sumsOf } from "../src/shares";
import { SvgSurface } from "../src/surface";
import { mixed, pixel } from "../src/theme";
import { fromFragment, initial, toFragment } from "../src/view";
import { slidersOf, timedAgain } from "../src/whatif";
import { number, slotTold, time } from "../src/words";
import { two, world } from "./world";

describe("columns", () => {
  it("come back from their bytes", async () => {
    const plain = { coding: "int", length: 3, width: 2, signed: false, delta: false } as const;
    const layout = {
      plain,
      signed: { ...plain, width: 1, signed: true },
      delta: { ...plain, width: 1, signed: true, delta: true },
      wide: { ...plain, width: 5, length: 1 },
      float: { ...plain, coding: "float" as const, width: 8, length: 1 },
    };
    const bytes = [1, 2, 3, 0, 1, 0, 0, 1, 2, 20, 1, 2, 7, 0, 0, 0, 1, ...new Uint8Array(new Float64Array([0.1]).buffer)];
    const packing = new Blob([Uint8Array.from(bytes)]).stream().pipeThrough(new CompressionStream("deflate"));
    const packed = btoa(String.fromCharCode(...new Uint8Array(await new Response(packing).arrayBuffer())));
    const columns = columnsOf(layout, await inflate(packed));
    expect([...columns.get("plain")!]).toEqual([1, 258, 3]);
    expect([...columns.get("signed")!]).toEqual([0, -1, 1]);
    expect([...columns.get("delta")!]).toEqual([10, 9, 10]);
    expect([...columns.get("wide")!]).toEqual([7 + 2 ** 32]);
    expect([...columns.get("float")!]).toEqual([0.1]);
  });
});

describe("a run", () => {
  it("knows what is where", () => {
    const run = two();
    expect(slotAt(run, 0, 4)).toBe(2);
    expect(slotAt(run, 0, 3)).toBe(-1);
    expect(bubbleAt(run, 0, 3)).toBe(0);
    expect(slotAt(run, 1, 99)).toBe(-1);
    expect([...groupedBy(run.messages.maker, 8).start]).toEqual([0, 1, 2, 2, 2, 2, 3, 3, 4]);
  });
});

describe("shares", () => {
  it("are exact, whatever the columns", () => {
    let seed = 1;
    const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
    let at = 0;
    const slots = Array.from({ length: 400 }, (_, k) => {
      const start = at + (random() < 0.3 ? random() : 0);
      at = start + random() * (random() < 0.1 ? 9 : 0.3);
      return { rank: 0, word: [0, 1, 2, 3, 9][k % 5], stage: 0, microbatch: k, start, end: at };
    });
    const run = world(slots);
    const [from, to, columns] = [at * 0.13, at * 0.94, 57];
    const shares = sharesOf(run, sumsOf(run), 0, from, to, columns);
    const width = (to - from) / columns;
    for (let column = 0; column < columns; column++) {
      const [left, right] = [from + column * width, from + (column + 1) * width];
      BANDS.forEach((word, k) => {
        const seconds = slots
          .filter((slot) => slot.word === word)
          .reduce((sum, slot) => sum + Math.max(0, Math.min(slot.end, right) - Math.max(slot.start, left)), 0);
        expect(shares.bands[column * BANDS.length + k]).toBeCloseTo(seconds / width, 5);
      });
      const busy = shares.bands.subarray(column * BANDS.length, (column + 1) * BANDS.length).reduce((a, b) => a + b);
      expect(shares.cause[column] === 0).toBe(busy < 1 - 1e-5);
    }
  });

  it("halve an F&B between its kinds", () => {
    const run = world([{ rank: 0, word: 4, stage: 0, microbatch: 0, start: 0, end: 4 }]);
    const { bands } = sharesOf(run, sumsOf(run), 0, 0, 4, 1);
    expect(Object.fromEntries(BANDS.map((word, k) => [word, bands[k]]))).toEqual({ 0: 0.5, 1: 0, 2: 0, 3: 0.5, 9: 0 });
  });
});

describe("what if", () => {
  it("gives the run back where nothing changes", () => {
    const { run, makespan, bubbleRate } = timedAgain(two(), {});
    expect(makespan).toBe(9);
    expect([...run.slots.start]).toEqual([...two().slots.start]);
    expect(bubbleRate).toBeCloseTo(6 / 18);
  });

  it("follows factors, latency and the ramp over stages", () => {
    expect(timedAgain(two(), { F: 2 }).makespan).toBe(12);
    expect(timedAgain(two(), { I: 2 }).makespan).toBe(12);
    expect(timedAgain(two(), { latency: 0.5 }).makespan).toBe(10);
    const ramp = timedAgain(two(), { imbalance: 0.5 }).run.slots;
    expect([...ramp.end].map((end, slot) => end - ramp.start[slot])).toEqual([0.5, 0.5, 1, 1, 1.5, 3, 1.5, 3]);
  });

  it("offers the sliders that mean something", () => {
    expect(slidersOf(two()).map((slider) => slider.name)).toEqual(["F", "I", "W", "latency", "imbalance"]);
    const measured = two();
    measured.header.costs.tables = null;
    expect(slidersOf(measured).map((slider) => slider.name)).toEqual(["F", "B", "latency", "imbalance"]);
    expect(timedAgain(measured, { B: 2 }).makespan).toBe(15);
  });

  it("leaves bubbles without causes", () => {
    const { bubbles } = timedAgain(two(), { F: 2 }).run;
    expect([...bubbles.main].every((cause) => cause === CAUSES.length)).toBe(true);
    expect(bubbles.count).toBeGreaterThan(0);
  });
});

describe("a view", () => {
  const first = initial(9, { run: 0, rank: 1 });

  it("comes back from its address", () => {
    const view = {
      ...first, from: 1.5, to: 3, top: 40, open: new Set(["0.1", "1.3"]), path: true, theme: "dark" as const,
      selected: { what: "bubble" as const, run: 1, index: 7 }, focus: { run: 1, rank: 3 }, whatif: { F: 1.2, latency: 0.5 },
    };
    expect(fromFragment(`#${toFragment(view, first)}`, first)).toEqual(view);
    expect(toFragment(first, first)).toBe("");
  });

  it("passes over what makes no sense", () => {
    const odd = "#t=3,1&slot=x&rank=1&open=<b>,2.3&theme=pink&whatif=F:NaN,__proto__:2,&y=-4&nothing";
    expect(fromFragment(odd, first)).toEqual({ ...first, open: new Set(["2.3"]) });
  });
});

describe("search", () => {
  it("reads ranks, stages, micro-batches and actions", () => {
    expect(queryOf("rank 3")).toMatchObject({ rank: 3, stage: null });
    expect(queryOf("2F17")).toMatchObject({ stage: 2, kind: 0, microbatch: 17 });
    expect(queryOf("Stage 2, mb=5")).toMatchObject({ stage: 2, microbatch: 5 });
    expect(queryOf("micro-batch 4 backward")).toMatchObject({ microbatch: 4, kind: 3 });
    expect(queryOf("gibberish")).toBeNull();
    expect(queryOf("")).toBeNull();
  });

  it("finds slots in order of time", () => {
    expect(matches(two(), queryOf("mb 1")!)).toEqual([1, 6, 7, 3]);
    expect(matches(two(), queryOf("rank 1 F")!)).toEqual([4, 6]);
  });
});

describe("drawing", () => {
  it("puts round times on the axis", () => {
    expect(ticksOf(0, 66, 1000)).toEqual([0, 10, 20, 30, 40, 50, 60]);
    expect(ticksOf(0.1, 0.3, 400)).toEqual([0.1, 0.15, 0.2, 0.25, 0.3]);
  });

  it("writes hostile text as text", () => {
    const surface = new SvgSurface(10, 10, "</title><script>");
    surface.text(0, 0, '<img onerror="x">&', 10, "#000000", "left");
    expect(surface.toString()).toContain("&lt;img onerror=&quot;x&quot;&gt;&amp;");
    expect(surface.toString()).not.toContain("<script>");
  });

  it("mixes colours", () => {
    expect(mixed("#ff0000", "#0000ff", 0.5)).toBe("#800080");
    expect(pixel("#010203")).toBe(0xff030201);
  });

  it("tells numbers and times shortly", () => {
    expect([number(66), number(1 / 3), time(0.05), time(2), time(0), time(3e-6)]).toEqual(["66", "0.333333", "50 ms", "2 s", "0 s", "3 µs"]);
  });
});

describe("memory", () => {
  it("keeps the fullest moment of each column", () => {
    const run = two();
    const [during, after] = [[1, 2, 2, 1, 1, 1, 1, 1], [1, 2, 1, 0, 1, 0, 1, 0]].map((values) => Float64Array.from(values));
    run.levels = [{ kind: "activations", during, after }];
    expect([...stackOf(run, 0, 0, 9, 9).columns[0]]).toEqual([1, 2, 2, 2, 2, 2, 1, 1, 1]);
    expect([...stackOf(run, 0, 0, 9, 1).columns[0]]).toEqual([2]);
  });
});

describe("a block's sentences", () => {
  it("promise a delay of the run only where there is no slack", () => {
    const page = { words: ["F", "I", "W", "B", "F&B", "optimizer"] } as Page;
    const run = two();
    const told = (critical: number, slack: number) => {
      [run.slots.critical[0], run.slots.slack[0]] = [critical, slack];
      return slotTold(page, run, 0).lines[1];
    };
    expect(told(1, 0)).toBe("It is on the critical path: any delay of it delays the run.");
    expect(told(1, 0.5)).toContain("yet could end 0.5 s later");
    expect(told(0, 0)).toBe("It has no slack: any delay of it delays the run.");
    expect(told(0, 0.5)).toContain("Slack 0.5 s");
  });
});
