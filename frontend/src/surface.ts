// What the drawing is made on: a canvas, or SVG for export.

export type Align = "left" | "center" | "right";

export interface Surface {
  rect(x: number, y: number, width: number, height: number, fill: string, pattern?: number): void;
  frame(x: number, y: number, width: number, height: number, stroke: string, line: number): void;
  line(points: number[], stroke: string, line: number, dash?: number): void;
  curve(from: [number, number], to: [number, number], stroke: string, line: number): void;
  area(points: number[], fill: string): void;
  text(x: number, y: number, text: string, size: number, fill: string, align: Align, bold?: boolean): void;
  clip(x: number, y: number, width: number, height: number, draw: () => void): void;
  /** Opaque pixels of the device, `width` a row; null where the surface has none. */
  pixels(x: number, y: number, width: number, height: number): Uint32Array | null;
  putPixels(): void;
  readonly ratio: number;
}

export const FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif";

/** Directions of hatching by pattern: 1 rises, 2 falls, 3 is level, 4 upright. */
const STROKES: Record<number, [number, number, number, number][]> = {
  1: [[0, 6, 6, 0]],
  2: [[0, 0, 6, 6]],
  3: [[0, 3, 6, 3]],
  4: [[3, 0, 3, 6]],
};
const HATCH = "rgba(27,27,27,0.34)";

export class CanvasSurface implements Surface {
  readonly ratio: number;
  private readonly patterns = new Map<number, CanvasPattern>();
  private image: { data: ImageData; x: number; y: number } | null = null;

  constructor(readonly context: CanvasRenderingContext2D, ratio: number) {
    this.ratio = ratio;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.textBaseline = "middle";
  }

  rect(x: number, y: number, width: number, height: number, fill: string, pattern = 0): void {
    this.context.fillStyle = fill;
    this.context.fillRect(x, y, width, height);
    if (pattern) {
      this.context.fillStyle = this.hatching(pattern);
      this.context.fillRect(x, y, width, height);
    }
  }

  private hatching(number: number): CanvasPattern {
    let found = this.patterns.get(number);
    if (!found) {
      const tile = document.createElement("canvas");
      tile.width = tile.height = 6;
      const context = tile.getContext("2d")!;
      context.strokeStyle = HATCH;
      for (const [x, y, toX, toY] of STROKES[number]) {
        for (const shift of [-6, 0, 6]) {
          context.beginPath();
          context.moveTo(x + shift, y);
          context.lineTo(toX + shift, toY);
          context.stroke();
        }
      }
      found = this.context.createPattern(tile, "repeat")!;
      this.patterns.set(number, found);
    }
    return found;
  }

  frame(x: number, y: number, width: number, height: number, stroke: string, line: number): void {
    this.context.strokeStyle = stroke;
    this.context.lineWidth = line;
    this.context.strokeRect(x, y, width, height);
  }

  line(points: number[], stroke: string, line: number, dash = 0): void {
    const context = this.context;
    context.strokeStyle = stroke;
    context.lineWidth = line;
    context.setLineDash(dash ? [dash, dash] : []);
    context.beginPath();
    for (let i = 0; i < points.length; i += 2) context.lineTo(points[i], points[i + 1]);
    context.stroke();
    context.setLineDash([]);
  }

  curve(from: [number, number], to: [number, number], stroke: string, line: number): void {
    const context = this.context;
    context.strokeStyle = stroke;
    context.lineWidth = line;
    context.beginPath();
    context.moveTo(...from);
    context.bezierCurveTo(...bend(from, to), ...to);
    context.stroke();
    this.area(head(from, to), stroke);
  }

  area(points: number[], fill: string): void {
    const context = this.context;
    context.fillStyle = fill;
    context.beginPath();
    for (let i = 0; i < points.length; i += 2) context.lineTo(points[i], points[i + 1]);
    context.fill();
  }

  text(x: number, y: number, text: string, size: number, fill: string, align: Align, bold = false): void {
    const context = this.context;
    const font = `${bold ? "600 " : ""}${size}px ${FONT}`;
    if (this.font !== font) context.font = this.font = font;
    context.fillStyle = fill;
    context.textAlign = align;
    context.fillText(text, x, y);
  }

  private font = "";

  clip(x: number, y: number, width: number, height: number, draw: () => void): void {
    this.context.save();
    this.context.beginPath();
    this.context.rect(x, y, width, height);
    this.context.clip();
    draw();
    this.context.restore();
    this.font = "";
  }

  pixels(x: number, y: number, width: number, height: number): Uint32Array {
    const data = this.context.createImageData(width, height);
    this.image = { data, x: Math.round(x * this.ratio), y: Math.round(y * this.ratio) };
    return new Uint32Array(data.data.buffer);
  }

  putPixels(): void {
    if (this.image) this.context.putImageData(this.image.data, this.image.x, this.image.y);
    this.image = null;
  }
}

/** The inner points of a curve that leaves and arrives level. */
function bend(from: [number, number], to: [number, number]): [number, number, number, number] {
  const reach = Math.min(60, 12 + Math.abs(to[0] - from[0]) / 2);
  return [from[0] + reach, from[1], to[0] - reach, to[1]];
}

function head(_from: [number, number], [x, y]: [number, number]): number[] {
  return [x, y, x - 7, y - 3.5, x - 7, y + 3.5];
}

export class SvgSurface implements Surface {
  readonly ratio = 1;
  private readonly parts: string[] = [];
  private clips = 0;

  constructor(private readonly width: number, private readonly height: number, private readonly title: string) {}

  rect(x: number, y: number, width: number, height: number, fill: string, pattern = 0): void {
    const box = `x="${n(x)}" y="${n(y)}" width="${n(Math.max(width, 0))}" height="${n(Math.max(height, 0))}"`;
    this.parts.push(`<rect ${box} fill="${fill}"/>`);
    if (pattern) this.parts.push(`<rect ${box} fill="url(#hatch${pattern})"/>`);
  }

  frame(x: number, y: number, width: number, height: number, stroke: string, line: number): void {
    this.parts.push(
      `<rect x="${n(x)}" y="${n(y)}" width="${n(width)}" height="${n(height)}" fill="none" stroke="${stroke}" ` +
        `stroke-width="${line}"/>`,
    );
  }

  line(points: number[], stroke: string, line: number, dash = 0): void {
    const dashes = dash ? ` stroke-dasharray="${dash}"` : "";
    this.parts.push(
      `<polyline points="${points.map(n).join(" ")}" fill="none" stroke="${stroke}" stroke-width="${line}"${dashes}/>`,
    );
  }

  curve(from: [number, number], to: [number, number], stroke: string, line: number): void {
    const points = [...bend(from, to), ...to].map(n).join(" ");
    this.parts.push(
      `<path d="M${n(from[0])} ${n(from[1])}C${points}" fill="none" stroke="${stroke}" stroke-width="${line}"/>`,
    );
    this.area(head(from, to), stroke);
  }

  area(points: number[], fill: string): void {
    this.parts.push(`<polygon points="${points.map(n).join(" ")}" fill="${fill}"/>`);
  }

  text(x: number, y: number, text: string, size: number, fill: string, align: Align, bold = false): void {
    const anchor = { left: "start", center: "middle", right: "end" }[align];
    const weight = bold ? ` font-weight="600"` : "";
    this.parts.push(
      `<text x="${n(x)}" y="${n(y + size * 0.35)}" font-size="${size}" fill="${fill}" text-anchor="${anchor}"${weight}>` +
        `${escaped(text)}</text>`,
    );
  }

  clip(x: number, y: number, width: number, height: number, draw: () => void): void {
    const id = `clip${this.clips++}`;
    this.parts.push(
      `<clipPath id="${id}"><rect x="${n(x)}" y="${n(y)}" width="${n(width)}" height="${n(height)}"/></clipPath>` +
        `<g clip-path="url(#${id})">`,
    );
    draw();
    this.parts.push("</g>");
  }

  /** Draws with the origin moved. */
  moved(x: number, y: number, draw: () => void): void {
    this.parts.push(`<g transform="translate(${n(x)} ${n(y)})">`);
    draw();
    this.parts.push("</g>");
  }

  pixels(): null {
    return null;
  }

  putPixels(): void {
    // There are none.
  }

  toString(): string {
    const hatches = Object.entries(STROKES).map(
      ([number, lines]) =>
        `<pattern id="hatch${number}" width="6" height="6" patternUnits="userSpaceOnUse">` +
        lines.map(([x, y, toX, toY]) => `<path d="M${x} ${y}L${toX} ${toY}" stroke="${HATCH}"/>`).join("") +
        "</pattern>",
    );
    return (
      `<svg xmlns="http://www.w3.org/2000/svg" width="${this.width}" height="${this.height}" ` +
      `viewBox="0 0 ${this.width} ${this.height}" font-family="${FONT.replaceAll('"', "'")}">` +
      `<title>${escaped(this.title)}</title><defs>${hatches.join("")}</defs>${this.parts.join("\n")}</svg>\n`
    );
  }
}

function n(value: number): string {
  return String(Math.round(value * 1000) / 1000);
}

export function escaped(text: string): string {
  return text
    .replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;")
    // eslint-disable-next-line no-control-regex
    .replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, "?");
}
