// Search: "rank 3", "stage 2", "mb 17", "2F17", alone or together.

import { PAIR, type Run } from "./run";

export interface Query {
  rank: number | null;
  stage: number | null;
  microbatch: number | null;
  kind: number | null; // index of Page.words
}

/** What a search asks for; null where it is not understood. */
export function queryOf(text: string): Query | null {
  const query: Query = { rank: null, stage: null, microbatch: null, kind: null };
  const rest = text
    .replace(/\b(\d+)([FIWB])(\d+)\b/gi, (_, stage: string, kind: string, microbatch: string) => {
      Object.assign(query, { stage: Number(stage), kind: "FIWB".indexOf(kind.toUpperCase()), microbatch: Number(microbatch) });
      return "";
    })
    .replace(/\b(rank|stage|micro-?batch|mb|r|s|m)\s*[:=]?\s*(\d+)\b/gi, (_, word: string, value: string) => {
      const name = ({ r: "rank", s: "stage", m: "microbatch" } as const)[word[0].toLowerCase() as "r" | "s" | "m"];
      query[name] = Number(value);
      return "";
    })
    .replace(/\b(forward|backward|[FIWB])\b/gi, (word) => {
      query.kind = "FIWB".indexOf(word[0].toUpperCase());
      return "";
    });
  const asks = Object.values(query).some((value) => value !== null);
  return asks && !rest.replace(/[\s,;&]+/g, "") ? query : null;
}

/** The slots of a run that a query is about, in order of time. */
export function matches(run: Run, query: Query): number[] {
  const { slots } = run;
  const found: number[] = [];
  const fits = (word: number, stage: number, microbatch: number) =>
    (query.kind === null || query.kind === word) &&
    (query.stage === null || query.stage === stage) &&
    (query.microbatch === null || query.microbatch === microbatch);
  for (let slot = 0; slot < slots.count; slot++) {
    if (slots.stage[slot] < 0 || (query.rank !== null && query.rank !== slots.rank[slot])) continue;
    const pair = slots.pair[slot];
    const word = slots.word[slot] === PAIR ? 0 : slots.word[slot];
    if (fits(word, slots.stage[slot], slots.microbatch[slot]) || (pair >= 0 && fits(3, slots.pairStage[pair], slots.pairMicrobatch[pair]))) {
      found.push(slot);
    }
  }
  return found.sort((a, b) => slots.start[a] - slots.start[b]);
}
