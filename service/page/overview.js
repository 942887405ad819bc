// A run at a glance: who worked on what and when, rewards, who teaches whom, how alike the branches are.

import { get, getAll } from "./api.js";
import { chart, dashOf, dot, legend } from "./chart.js";
import { card, empty, fill, h } from "./dom.js";
import { PHASE_NAMES, clock, duration, number, percent } from "./format.js";
import { lanes } from "./lanes.js";
import { matrix } from "./matrix.js";
import { watch } from "./watch.js";

const SHARES = [["gather", "Sampling and judging"], ["learn", "Update"], ["publish", "Publishing"], ["waiting", "Waiting"]];
const LEAST_GAP = 0.05; // a smaller gap is which prompts were drawn
const CURVES = [["native/reward", "Reward of a step's own prompts"], ["native/length", "Tokens of a completion"]];

export async function overview(context, { run }) {
  const { signal, facts, colours } = context;
  const off = new Set();
  const head = h("div", { class: "run-title" });
  const lane = h("div", {});
  const curves = h("div", { class: "grid two" });
  const edges = h("div", {});
  const time = h("div", {});
  const accuracy = h("div", {});
  let drawn = [];
  const open = (line, step) => { location.hash = `#/run/${run}/step/${line.name}/${step}`; };

  async function draw() {
    const [info, tracks, alarms, notes] = await Promise.all([
      get(`/runs/${run}`, {}, signal), get(`/runs/${run}/lanes`, { points: 400 }, signal),
      get(`/runs/${run}/alarms`, {}, signal),
      getAll(`/runs/${run}/notes`, { kind: ["overlap", "accuracy", "lease", "failed", "run", "rhythm"] }, "notes", signal),
    ]);
    const names = Object.keys(info.branches);
    const teacherKeys = names.flatMap((name) => [`${name}/gap`, `${name}/delta_abs`]);
    const series = await get(`/runs/${run}/series`, { key: [...CURVES.map(([key]) => key), ...teacherKeys], points: 600 }, signal);
    drawn.forEach((item) => item.destroy());
    drawn = [];
    fill(head, h("h1", {}, run), h("span", { class: `badge ${info.state}` }, info.state),
      h("span", { class: "note" }, `began ${clock(info.started)}, last heard of ${clock(info.updated)}`),
      h("a", { href: `#/run/${run}/alarms`, class: alarms.alarms.length ? "badge alarm" : "badge" },
        alarms.alarms.length ? `${alarms.alarms.length} to look at` : "no alarms"));
    fill(lane, lanes(tracks.lanes, notes, { colours, facts, onpick: (branch, step) => open({ name: branch }, step) }));
    fill(curves, CURVES.map(([key, title]) => {
      const lines = Object.entries(series.branches).filter(([name]) => !off.has(name)).map(([name, slice]) => ({
        name, colour: colours[name], dash: dashOf(facts, names, name), steps: slice.steps, values: slice.values[key] }));
      drawn.push(chart(title, lines, { smoothing: 5, onpick: open }));
      return h("figure", { class: "card" }, h("figcaption", {}, title), drawn.at(-1).node);
    }));
    fill(edges, ...teachers(series, names, colours));
    fill(time, shares(tracks.lanes, colours));
    fill(accuracy, ...accuracies(notes));
    pairs.show(notes.filter((note) => note.kind === "overlap"));
  }

  const pairs = matrix(colours);
  await draw();
  watch(context, run, draw);
  signal.addEventListener("abort", () => drawn.forEach((item) => item.destroy()));
  const phases = Object.entries(facts.phases).map(([phase, colour]) => h("span", { class: "key" }, h("i", { css: { "--c": colour } }), PHASE_NAMES[phase] ?? phase));
  return h("div", {}, head,
    card("Who works on what", h("span", { class: "keys" }, phases, h("span", { class: "key" }, h("i", { class: "hollow" }), "waiting")), lane),
    h("div", { class: "bar" }, legend(Object.keys(colours).filter((name) => name !== "base" && name !== "merged"), colours, off, draw),
      h("span", { class: "hint" }, "A click on a point opens the rollouts of its step.")),
    curves,
    h("div", { class: "grid two" },
      card("How alike the branches are", null, pairs.node),
      h("div", { class: "stack" }, card("Who teaches whom", h("span", {}, "gap: the teacher's reward minus the student's"), edges),
        card("Where the time goes", null, time))),
    accuracy);
}

// An edge for each student and teacher: what there was to learn, and how much of it is left.
function teachers(series, names, colours) {
  const rows = [];
  for (const [student, slice] of Object.entries(series.branches))
    for (const teacher of names) {
      const gaps = (slice.values[`${teacher}/gap`] ?? []).filter((value) => value !== null);
      const deltas = (slice.values[`${teacher}/delta_abs`] ?? []).filter((value) => value !== null);
      if (!deltas.length) continue;
      // Of three steps: a step asks few prompts.
      const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
      const [first, last] = gaps.length ? [mean(gaps.slice(0, 3)), mean(gaps.slice(-3))] : [null, null];
      rows.push({ student, teacher, first, last, absorbed: first > LEAST_GAP ? Math.min(1, Math.max(0, 1 - last / first)) : null, delta: deltas.at(-1) });
    }
  if (!rows.length) return [empty("Nobody has taught yet: phase II comes after phase I.")];
  const head = ["Teacher", "Student", "Gap at first", "Gap now", "Absorbed", "|Δ| now, nats"];
  return [h("div", { class: "scroll", tabindex: 0 }, h("table", { class: "plain" }, h("thead", {}, h("tr", {}, head.map((text, index) => h("th", { scope: "col", class: index > 1 ? "num" : "" }, text)))),
    h("tbody", {}, rows.map((row) => h("tr", {},
      h("td", {}, dot(colours[row.teacher]), row.teacher), h("td", {}, "→ ", dot(colours[row.student]), row.student),
      h("td", { class: "num" }, number(row.first, 2)), h("td", { class: "num" }, number(row.last, 2)),
      h("td", { class: "num" }, row.absorbed === null ? "–" : percent(row.absorbed, 0)), h("td", { class: "num" }, number(row.delta, 2)))))))];
}

function shares(tracks, colours) {
  return [h("div", { class: "keys" }, SHARES.map(([key, text]) => h("span", { class: "key" }, h("i", { class: `share-${key}` }), text))),
    Object.entries(tracks).map(([name, { totals }]) => {
      const all = SHARES.reduce((sum, [key]) => sum + (totals[key] ?? 0), 0);
      const words = SHARES.map(([key, text]) => `${text} ${percent((totals[key] ?? 0) / all, 0)}`).join(", ");
      return h("div", { class: "share" }, h("span", { class: "name" }, dot(colours[name]), name),
        h("div", { class: "share-bar", role: "img", "aria-label": `${name}: ${words}`, title: words }, SHARES.map(([key]) =>
          h("i", { class: `share-${key}`, css: { "flex-grow": String(totals[key] ?? 0) } }))),
        h("span", { class: "num" }, duration(all)));
    })];
}

// The newest exam of each model that was examined on the way.
function accuracies(notes) {
  const exams = notes.filter((note) => note.kind === "accuracy");
  if (!exams.length) return [];
  const rows = exams.at(-1).rows;
  const names = [...new Set(rows.map((row) => row.exam))];
  const models = [...new Set(rows.map((row) => `${row.model} ${row.way}`))];
  return [card("Accuracy by capability", h("span", {}, `after step ${exams.at(-1).step}, with half of the 95 % interval`),
    h("div", { class: "scroll", tabindex: 0 }, h("table", { class: "plain" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Model"), names.map((name) => h("th", { scope: "col", class: "num" }, name)))),
      h("tbody", {}, models.map((model) => h("tr", {}, h("th", { scope: "row" }, model), names.map((exam) => {
        const row = rows.find((item) => `${item.model} ${item.way}` === model && item.exam === exam);
        return h("td", { class: "num" }, row ? `${percent(row.accuracy)}${row.half_width === null ? "" : ` ± ${(100 * row.half_width).toFixed(1)}`}` : "–");
      })))))))];
}
