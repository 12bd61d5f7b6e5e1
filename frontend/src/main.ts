// The page: reads its data and puts the timeline together.

import { controls } from "./controls";
import { columnsOf, inflate, type Page } from "./data";
import { element } from "./dom";
import { keyboard } from "./keyboard";
import { pointer } from "./pointer";
import { runsOf } from "./run";
import { Timeline } from "./timeline";

async function start(): Promise<void> {
  const page = JSON.parse(element("header").textContent) as Page;
  const columns = columnsOf(page.layout, await inflate(element("columns").textContent));
  element("columns").remove();
  const timeline = new Timeline(page, runsOf(page, columns));
  controls(timeline);
  keyboard(timeline);
  pointer(timeline);
  timeline.restore(location.hash);
  (window as unknown as { timeline: Timeline }).timeline = timeline; // for tests, and whoever opens the console
}

void start();
