// Every key that a step has told, as curves: filtered, smoothed, on a log scale, zoomed by dragging.

import { get } from "./api.js";
import { chart, dashOf, legend } from "./chart.js";
import { choice, empty, fill, h } from "./dom.js";
import { watch } from "./watch.js";

const POINTS = 800; // as many as a wide chart has pixels to tell apart
const AT_ONCE = 24; // charts; a filter finds the others

export async function metrics(context, { run }) {
  const { signal, facts, colours, query } = context;
  const { keys } = await get(`/runs/${run}/series`, {}, signal);
  const charts = h("div", { class: "grid three" });
  const state = { filter: query.get("filter") ?? "native/", smoothing: 5, isLog: false, first: 0, last: null, off: new Set(), all: false, turn: 0 };
  let drawn = [];

  async function draw() {
    const turn = ++state.turn; // an answer that comes late must not draw over a newer one
    const words = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = keys.filter((key) => words.every((word) => key.includes(word)));
    const shown = state.all ? wanted : wanted.slice(0, AT_ONCE);
    const answer = shown.length
      ? await get(`/runs/${run}/series`, { key: shown, points: POINTS, first: state.first || undefined, last: state.last ?? undefined }, signal)
      : { branches: {} };
    if (turn !== state.turn) return;
    drawn.forEach((item) => item.destroy());
    const names = Object.keys(answer.branches);
    drawn = shown.map((key) => chart(key, names.filter((name) => !state.off.has(name)).map((name) => ({
      name, colour: colours[name] ?? facts.neutral, dash: dashOf(facts, names, name),
      steps: answer.branches[name].steps, values: answer.branches[name].values[key],
    })), {
      smoothing: state.smoothing, isLog: state.isLog,
      onpick: (line, step) => { location.hash = `#/run/${run}/step/${line.name}/${step}`; },
      onzoom: (first, last) => { Object.assign(state, { first, last }); draw(); },
    }));
    fill(charts, shown.map((key, index) => h("figure", { class: "card" }, h("figcaption", {}, key), drawn[index].node)),
      !shown.length && empty("No key has these words."));
    const more = wanted.length - shown.length;
    fill(foot, more > 0 && h("button", { type: "button", onclick: () => { state.all = true; draw(); } }, `Show ${more} more`));
    fill(zoomed, state.last !== null && h("button", { type: "button", onclick: () => { Object.assign(state, { first: 0, last: null }); draw(); } }, `Steps ${state.first} to ${state.last}: show all`));
  }

  const foot = h("div", { class: "foot" });
  const zoomed = h("span", {});
  const field = h("input", { type: "search", value: state.filter, placeholder: "native/ or gap or seconds", list: "keys" });
  field.addEventListener("input", () => { state.filter = field.value; state.all = false; draw(); });
  const slider = h("input", { type: "range", min: 1, max: 50, value: state.smoothing });
  const told = h("output", {}, String(state.smoothing));
  slider.addEventListener("input", () => { state.smoothing = Number(slider.value); told.textContent = slider.value; draw(); });
  await draw();
  watch(context, run, draw);
  signal.addEventListener("abort", () => drawn.forEach((item) => item.destroy()));
  return h("div", {}, h("h1", {}, "Metrics"),
    h("div", { class: "bar" },
      h("label", { class: "field" }, h("span", {}, "Filter"), field),
      h("label", { class: "field" }, h("span", {}, "Smoothing, steps"), h("span", { class: "range" }, slider, told)),
      choice("Scale", [[false, "Linear"], [true, "Log"]], state.isLog, (value) => { state.isLog = value; draw(); }),
      legend(Object.keys(colours).filter((name) => name !== "base" && name !== "merged"), colours, state.off, draw), zoomed),
    charts, foot);
}
