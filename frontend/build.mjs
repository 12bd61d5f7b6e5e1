// Bundles src/ into the two files that the Python package ships; --check only compares them with what is committed.
import { build } from "esbuild";
import { readFileSync, writeFileSync } from "node:fs";

const out = new URL("../simulator/views/page/", import.meta.url);
const common = { bundle: true, minify: true, write: false, charset: "ascii", legalComments: "none" };
const results = [
  ["timeline.js", await build({ ...common, entryPoints: ["src/main.ts"], format: "iife", target: "es2022" })],
  ["timeline.css", await build({ ...common, entryPoints: ["src/timeline.css"] })],
];
for (const [name, result] of results) {
  const text = result.outputFiles[0].text;
  const file = new URL(name, out);
  if (!process.argv.includes("--check")) {
    writeFileSync(file, text);
  } else if (readFileSync(file, "utf-8") !== text) {
    console.error(`simulator/views/page/${name} is not what frontend/src builds; run: npm run build`);
    process.exit(1);
  }
}
