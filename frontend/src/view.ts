// What is looked at: a stretch of time, the opened ranks, the selection. Its text stands in the page's address.

export type Target =
  | { what: "slot"; run: number; index: number }
  | { what: "bubble"; run: number; index: number };

export interface View {
  from: number;
  to: number;
  top: number; // pixels scrolled
  open: Set<string>; // "run.rank"
  selected: Target | null;
  path: boolean; // the critical path is lit
  patterns: boolean;
  differences: boolean;
  focus: { run: number; rank: number }; // whose memory and links are shown
  theme: "auto" | "light" | "dark";
  whatif: Record<string, number>; // sliders that are not where they started
}

export function initial(span: number, focus: { run: number; rank: number }): View {
  return {
    from: 0, to: span, top: 0, open: new Set(), selected: null, path: false, patterns: false, differences: false,
    focus, theme: "auto", whatif: {},
  };
}

/** The part of an address that restores a view; what is as at first is left out. */
export function toFragment(view: View, first: View): string {
  const parts: string[] = [];
  if (view.from !== first.from || view.to !== first.to) parts.push(`t=${short(view.from)},${short(view.to)}`);
  if (view.top) parts.push(`y=${Math.round(view.top)}`);
  if (view.open.size) parts.push(`open=${[...view.open].join(",")}`);
  if (view.selected) parts.push(`${view.selected.what}=${view.selected.run}.${view.selected.index}`);
  for (const flag of ["path", "patterns", "differences"] as const) if (view[flag]) parts.push(`${flag}=1`); // a bare name would be that of an element to scroll to
  if (view.focus.run !== first.focus.run || view.focus.rank !== first.focus.rank) {
    parts.push(`rank=${view.focus.run}.${view.focus.rank}`);
  }
  if (view.theme !== "auto") parts.push(`theme=${view.theme}`);
  const settings = Object.entries(view.whatif).map(([name, value]) => `${name}:${value}`);
  if (settings.length) parts.push(`whatif=${settings.join(",")}`);
  return parts.join("&");
}

/** The view that a fragment describes; parts that make no sense are passed over. */
export function fromFragment(text: string, first: View): View {
  const view: View = { ...first, open: new Set(), whatif: {} };
  for (const part of text.replace(/^#/, "").split("&")) {
    const [name, value = ""] = part.split(/=(.*)/s);
    const pair = /^(\d+)\.(\d+)$/.exec(value)?.slice(1).map(Number);
    if (name === "t") {
      const [from, to] = value.split(",").map(Number);
      if (Number.isFinite(from) && Number.isFinite(to) && to > from) [view.from, view.to] = [from, to];
    } else if (name === "y" && Number.isFinite(Number(value))) view.top = Math.max(0, Number(value));
    else if (name === "open") view.open = new Set(value.split(",").filter((key) => /^\d+\.\d+$/.test(key)));
    else if ((name === "slot" || name === "bubble") && pair) {
      view.selected = { what: name, run: pair[0], index: pair[1] };
    } else if (name === "path" || name === "patterns" || name === "differences") view[name] = true;
    else if (name === "rank" && pair) view.focus = { run: pair[0], rank: pair[1] };
    else if (name === "theme" && (value === "light" || value === "dark")) view.theme = value;
    else if (name === "whatif") {
      for (const setting of value.split(",")) {
        const [key, number] = setting.split(":");
        if (key && number && Number.isFinite(Number(number))) view.whatif[key] = Number(number);
      }
    }
  }
  return view;
}

function short(value: number): string {
  return String(Number(value.toPrecision(9)));
}

/** A slot or bubble of a run; null for index -1. */
export function target(what: Target["what"], run: { index: number }, index: number): Target | null {
  return index < 0 ? null : { what, run: run.index, index };
}
