// Runs: how far each is and how long still; two to four of them laid over each other.

import { get } from "./api.js";
import { chart, dot } from "./chart.js";
import { card, empty, fill, h } from "./dom.js";
import { ago, duration, number } from "./format.js";

const MOST = 4; // curves of more runs are not told apart
const REFRESH_MS = 5000;
const DASHES = [[], [6, 3], [2, 3], [8, 3, 2, 3]];

function progress(branch, colour) {
  const share = branch.last ? branch.head / branch.last : 0;
  return h("progress", { value: share, max: 1, css: { "--c": colour }, "aria-label": `step ${branch.head} of ${branch.last ?? "unknown"}` });
}

function left(info) {
  if (info.state === "finished") return `took ${duration((new Date(info.updated) - new Date(info.started)) / 1000)}`;
  const branches = Object.values(info.branches);
  const made = branches.reduce((sum, branch) => sum + branch.head, 0);
  const all = branches.reduce((sum, branch) => sum + (branch.last ?? 0), 0);
  if (!made || !all) return "just begun";
  const seconds = (new Date(info.updated) - new Date(info.started)) / 1000;
  return `about ${duration((seconds / made) * (all - made))} to go`;
}

export async function runs({ signal, facts }) {
  const list = h("div", { class: "runs" });
  const overlay = h("div", {});
  const picked = new Set();
  let drawn = [];
  let key = "native/reward";

  async function draw() {
    const { runs } = await get("/runs", {}, signal);
    if (!runs.length) return fill(list, empty("No run has told anything yet. Start one: coevo run miniature"));
    fill(list, runs.map((info) => {
      const colours = facts.colours[info.id] ?? {};
      const box = h("input", { type: "checkbox", "aria-label": `Lay ${info.id} over others` });
      box.checked = picked.has(info.id);
      box.addEventListener("change", () => {
        if (!box.checked) picked.delete(info.id);
        else if (picked.size < MOST) picked.add(info.id);
        else box.checked = false;
        lay();
      });
      return h("article", { class: "card run" },
        h("div", { class: "run-head" }, box,
          h("h2", {}, h("a", { href: `#/run/${info.id}` }, info.id)),
          h("span", { class: `badge ${info.state}` }, info.state),
          h("span", { class: "note" }, `${left(info)} · heard of ${ago(info.updated)}`)),
        h("div", { class: "run-branches" }, Object.entries(info.branches).map(([name, branch]) =>
          h("div", { class: "run-branch" }, h("span", { class: "name" }, dot(colours[name]), name), progress(branch, colours[name]),
            h("span", { class: "num" }, `${branch.head} / ${branch.last ?? "?"}`),
            h("span", { class: "num" }, "reward ", h("b", {}, number(branch.reward)))))));
    }));
  }

  async function lay() {
    drawn.forEach((item) => item.destroy());
    if (picked.size < 2) return fill(overlay, h("p", { class: "hint" }, "Mark two to four runs to lay their curves over each other."));
    const chosen = [...picked];
    const answers = await Promise.all(chosen.map((run) => get(`/runs/${run}/series`, { key, points: 600 }, signal)));
    const branches = [...new Set(answers.flatMap((answer) => Object.keys(answer.branches)))];
    const keys = [...new Set(answers.flatMap((answer) => answer.keys))];
    drawn = branches.map((branch) => chart(branch, chosen.flatMap((run, index) => {
      const slice = answers[index].branches[branch];
      return slice ? [{ name: run, colour: facts.colours[run]?.[branch] ?? facts.neutral, dash: DASHES[index], steps: slice.steps, values: slice.values[key], run }] : [];
    }), { smoothing: 5, onpick: (line, step) => { location.hash = `#/run/${line.run}/step/${branch}/${step}`; } }));
    const field = h("select", { "aria-label": "Metric", onchange: (event) => { key = event.target.value; lay(); } },
      keys.map((name) => h("option", { selected: name === key }, name)));
    fill(overlay, card("Laid over each other", field,
      h("ul", { class: "dashes" }, chosen.map((run, index) => h("li", {}, h("span", { class: `dash dash-${index}` }), run))),
      h("div", { class: "grid three" }, branches.map((branch, index) => h("figure", {}, h("figcaption", {}, branch), drawn[index].node)))));
  }

  await draw();
  await lay();
  const timer = setInterval(() => draw().catch(() => {}), REFRESH_MS);
  signal.addEventListener("abort", () => { clearInterval(timer); drawn.forEach((item) => item.destroy()); });
  return h("div", {}, h("h1", {}, "Runs"), list, overlay);
}
