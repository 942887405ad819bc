// Branches as lanes on a time line: stretches of a phase, waits between them, and what happened to their leases.

import { dot, token } from "./chart.js";
import { h, hideTip, showTip } from "./dom.js";
import { PHASE_NAMES, duration } from "./format.js";

const ROW = 26;
const LABEL = 96;
const AXIS = 22;

export function lanes(tracks, notes, { colours, facts, onpick }) {
  const names = Object.keys(tracks);
  if (!names.length) return h("p", { class: "empty" }, "No step is made yet.");
  const end = Math.max(...names.map((name) => tracks[name].bars.at(-1)?.end ?? 0), 1);
  const began = new Date(notes[0]?.at ?? Date.now());
  const marks = notes.filter((note) => note.kind === "failed" || (note.kind === "lease" && note.what === "lost") || (note.kind === "run" && note.state === "running"))
    .map((note) => ({ ...note, second: (new Date(note.at) - began) / 1000 }));
  const canvas = h("canvas", { role: "img", "aria-label": names.map((name) => `${name}: ${tracks[name].bars.map((bar) => `${bar.phase} steps ${bar.first} to ${bar.last}`).slice(-4).join(", ")}`).join(". ") });
  const labels = h("div", { class: "lane-labels" }, names.map((name) => h("span", { class: "name" }, dot(colours[name]), name)));
  const box = h("div", { class: "lane-box" }, canvas);

  function draw() {
    const width = box.clientWidth;
    const height = names.length * ROW + AXIS;
    const ratio = devicePixelRatio || 1;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const x = (second) => (second / end) * (width - 1);
    pen.font = `11px ${token("--font")}`;
    pen.fillStyle = token("--muted");
    pen.strokeStyle = token("--line");
    const step = tick(end, width / 90);
    for (let second = 0; second <= end; second += step) {
      pen.beginPath();
      pen.moveTo(Math.round(x(second)) + 0.5, 0);
      pen.lineTo(Math.round(x(second)) + 0.5, names.length * ROW);
      pen.stroke();
      if (x(second) < width - 30) pen.fillText(duration(second), x(second) + 3, height - 6);
    }
    names.forEach((name, row) => {
      pen.fillStyle = token("--track");
      pen.fillRect(0, row * ROW + 5, width, ROW - 10);
      for (const bar of tracks[name].bars) {
        pen.fillStyle = facts.phases[bar.phase] ?? facts.neutral;
        pen.fillRect(x(bar.begin), row * ROW + 5, Math.max(1, x(bar.end) - x(bar.begin) - 0.5), ROW - 10);
      }
    });
    for (const mark of marks) {
      if (mark.second < 1) continue; // the run's own beginning
      const row = names.indexOf(mark.branch);
      pen.fillStyle = mark.kind === "run" ? token("--muted") : token("--bad");
      if (mark.kind === "run") pen.fillRect(x(mark.second), 0, 1.5, names.length * ROW);
      else if (row >= 0) { pen.beginPath(); pen.arc(x(mark.second), row * ROW + ROW / 2, 4, 0, 7); pen.fill(); }
    }
  }

  function at(event) {
    const rect = canvas.getBoundingClientRect();
    const name = names[Math.floor((event.clientY - rect.top) / ROW)];
    const second = ((event.clientX - rect.left) / rect.width) * end;
    const mark = marks.find((item) => item.second >= 1 && Math.abs(item.second - second) < (6 / rect.width) * end && (item.kind === "run" || item.branch === name));
    const bar = name && tracks[name].bars.find((item) => second >= item.begin && second <= item.end);
    const step = bar && Math.min(bar.last, bar.first + Math.floor(((second - bar.begin) / (bar.end - bar.begin || 1)) * (bar.last - bar.first + 1)));
    return { name, second, bar, step, mark };
  }
  canvas.addEventListener("mousemove", (event) => {
    const { name, bar, step, second, mark } = at(event);
    canvas.style.cursor = bar ? "pointer" : "default";
    if (!name) return hideTip();
    const words = mark ? (mark.kind === "run" ? "the run went on" : mark.kind === "failed" ? `failed: ${mark.error}` : `lease lost by ${mark.worker}`)
      : bar ? `${PHASE_NAMES[bar.phase] ?? bar.phase}, step ${step}` : "waiting";
    showTip(event.clientX, event.clientY, h("strong", {}, name), h("div", {}, words), h("div", { class: "note" }, `after ${duration(second)}`));
  });
  canvas.addEventListener("mouseleave", hideTip);
  canvas.addEventListener("click", (event) => {
    const { name, bar, step } = at(event);
    if (bar) onpick(name, step);
  });
  new ResizeObserver(draw).observe(box);
  return h("div", { class: "lanes", css: { "--label": `${LABEL}px`, "--row": `${ROW}px` } }, labels, box);
}

// A round number of seconds between two marks.
function tick(end, count) {
  const steps = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400, 172800, 604800];
  return steps.find((step) => end / step <= count) ?? steps.at(-1);
}
