// What the page holds: a header in JSON, and typed columns deflated together (simulator/views/columns.py writes them).

export interface Column {
  coding: "int" | "float";
  length: number;
  width: number;
  signed: boolean;
  delta: boolean;
}

export interface Rank {
  stages: number[];
  busy: number;
  bubble: number;
  bubbles: number;
  longest: number;
  kinds: Record<string, number>;
  exposed: number;
  launches: number;
  causes: Record<string, number>;
  peak: number;
  peakBytes: number;
}

export interface OperationKind {
  name: string;
  family: string;
  pass: "F" | "I" | "W";
  streams: string[];
  forward: boolean;
}

/** A synchronisation or the barrier: a task outside slots that is no message. */
export interface Other {
  text: string;
  word: string;
  name: string;
  start: number;
  end: number;
  ranks: number[];
  stream: string;
}

export interface Costs {
  exact: boolean;
  why: string;
  tables: string[] | null;
  latency: number;
}

export interface Header {
  prefix: string;
  name: string;
  title: string;
  ranks: number;
  stages: number;
  microbatches: number;
  perSecond: number;
  operationsPerSecond: number;
  makespan: number;
  figures: Record<string, unknown>;
  perRank: Rank[];
  memory: { unit: string; levels: { kind: string; per: number }[]; static: Record<string, number>[]; capacity: number | null };
  links: { bins: number; kinds: { name: string; unit: "share" | "bytes/s" | "messages"; most: number }[] } | null;
  others: Other[];
  operations: OperationKind[][] | null;
  opened: number | null;
  costs: Costs;
}

export interface Palette {
  kinds: Record<string, string>;
  labels: Record<string, string>;
  causes: Record<string, string>;
  causeLabels: Record<string, string>;
  remedies: Record<string, string>;
  families: Record<string, [string, string]>;
  passes: Record<string, string>;
  exposed: string;
  ink: string;
  edge: string;
}

export interface Page {
  runs: Header[];
  words: string[];
  palette: Palette;
  layout: Record<string, Column>;
}

export type Numbers = Float64Array | Int32Array | Uint8Array;
export type Columns = Map<string, Numbers>;

/** Inflates the columns' bytes. */
export async function inflate(base64: string): Promise<Uint8Array> {
  const packed = bytesOf(base64);
  const stream = new Blob([packed as BlobPart]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function bytesOf(base64: string): Uint8Array {
  const native = (Uint8Array as unknown as { fromBase64?: (text: string) => Uint8Array }).fromBase64;
  if (native) return native.call(Uint8Array, base64);
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/** Reads every column of a layout, in its order, from its bytes. */
export function columnsOf(layout: Record<string, Column>, bytes: Uint8Array): Columns {
  const found: Columns = new Map();
  let at = 0;
  for (const [name, column] of Object.entries(layout)) {
    const part = bytes.subarray(at, at + column.length * column.width);
    found.set(name, column.coding === "float" ? floats(part, column.length) : integers(part, column));
    at += column.length * column.width;
  }
  return found;
}

function floats(part: Uint8Array, length: number): Float64Array {
  const out = new Float64Array(length);
  const raw = new Uint8Array(out.buffer);
  for (let plane = 0; plane < 8; plane++) {
    for (let i = 0; i < length; i++) raw[8 * i + plane] = part[plane * length + i];
  }
  return out;
}

/** Whole numbers; as narrow an array as holds them, for those below 2^31 in four bytes. */
function integers(part: Uint8Array, column: Column): Numbers {
  const { length, width, signed, delta } = column;
  if (width === 1 && !signed && !delta) return part;
  const narrow = width < 4 && !delta;
  const out = narrow ? new Int32Array(length) : new Float64Array(length);
  let scale = 1;
  for (let plane = 0; plane < width; plane++, scale *= 256) {
    const from = plane * length;
    if (plane === 0) for (let i = 0; i < length; i++) out[i] = part[i];
    else for (let i = 0; i < length; i++) out[i] += part[from + i] * scale;
  }
  if (signed) for (let i = 0; i < length; i++) out[i] = out[i] % 2 ? -(out[i] + 1) / 2 : out[i] / 2;
  if (delta) for (let i = 1; i < length; i++) out[i] += out[i - 1];
  return out;
}
