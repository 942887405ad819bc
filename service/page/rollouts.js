// The rollouts of a step: a table, and a histogram of rewards whose bars filter it.

import { get, getAll } from "./api.js";
import { append, choice, fill, h, select } from "./dom.js";
import { number, percent, signed } from "./format.js";
import { table } from "./table.js";

const BARS = 20;

export async function rollouts({ signal }, { run, branch, step }) {
  const path = `/runs/${run}/rollouts/${branch}/${step}`;
  const [rows, first, info] = await Promise.all([
    getAll(`${path}/completions`, { limit: 5000 }, "rows", signal),
    get(`${path}/completions`, { limit: 1 }, signal), get(`/runs/${run}`, {}, signal)]);
  const state = { part: "", words: "", only: "", low: null, high: null };
  const parts = Object.keys(first.parts);
  const told = h("span", { class: "note", role: "status" });
  const bars = h("div", { class: "histogram", role: "group", "aria-label": "Completions by reward; a bar filters the table" });

  const grid = table([
    { key: "group", name: "Prompt", class: "c-prompt", sort: (row) => parts.indexOf(row.part) * 1e6 + row.group,
      cell: (row) => [h("span", { class: "part" }, row.part), h("a", { href: link(row), class: "ellipsis" }, row.question), row.is_decided && h("span", { class: "mark", title: "Every completion of this group has the same reward: it teaches nothing." }, "no variance")] },
    { key: "text", name: "Completion", class: "c-text", cell: (row) => h("span", { class: "ellipsis mono" }, row.text) },
    { key: "reward", name: "Reward", class: "num c-reward", sort: (row) => row.reward, cell: (row) => row.reward === null ? h("span", { class: "mark bad", title: row.why ?? "" }, "unscorable") : h("b", { class: row.reward > 0.5 ? "good" : "" }, number(row.reward)) },
    { key: "advantage", name: "Advantage", class: "num c-adv", sort: (row) => row.advantage, cell: (row) => signed(row.advantage) },
    { key: "delta", name: "Δ teacher", class: "num c-delta", sort: (row) => row.delta, cell: (row) => signed(row.delta, 3) },
    { key: "tokens", name: "Tokens", class: "num c-tokens", sort: (row) => row.tokens, cell: (row) => [row.is_cut_off && h("span", { class: "mark bad" }, "cut off"), row.tokens.toLocaleString("en")] },
  ], { label: "Completions", kind: "rollouts", onopen: (row) => { location.hash = link(row); } });

  function link(row) {
    return `#/run/${run}/step/${branch}/${step}/${encodeURIComponent(row.part)}/${row.group}`;
  }

  function fits(row, isByReward = true) {
    if (state.part && row.part !== state.part) return false;
    if (state.only === "variance" && row.is_decided) return false;
    if (state.only === "decided" && !row.is_decided) return false;
    if (state.only === "cut" && !row.is_cut_off) return false;
    if (state.only === "unscorable" && row.reward !== null) return false;
    if (isByReward && state.low !== null && (row.reward === null || row.reward < state.low || row.reward > state.high)) return false;
    return !state.words || `${row.question} ${row.text} ${row.why ?? ""}`.toLowerCase().includes(state.words);
  }

  function draw() {
    const shown = rows.filter((row) => fits(row));
    told.textContent = `${shown.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} completions`;
    grid.show(shown);
    histogram();
  }

  function histogram() {
    const rewards = rows.filter((row) => fits(row, false) && row.reward !== null).map((row) => row.reward);
    const [low, high] = [Math.min(0, ...rewards), Math.max(1, ...rewards)];
    const counts = new Array(BARS).fill(0);
    const width = (high - low) / BARS;
    for (const reward of rewards) counts[Math.min(BARS - 1, Math.floor((reward - low) / width))]++;
    const most = Math.max(...counts, 1);
    fill(bars, counts.map((count, index) => {
      const [from, to] = [low + index * width, low + (index + 1) * width];
      const isOn = state.low !== null && Math.abs(state.low - from) < width / 2;
      const words = `reward ${from.toFixed(2)} to ${to.toFixed(2)}: ${count} completions`;
      return h("button", {
        type: "button", "aria-pressed": String(isOn), "aria-label": words, title: words, disabled: !count,
        onclick: () => { Object.assign(state, isOn ? { low: null, high: null } : { low: from, high: index === BARS - 1 ? to + 1e-9 : to - 1e-9 }); draw(); },
      }, h("i", { css: { height: `${count ? Math.max(4, (count / most) * 100) : 0}%` } }));
    }));
  }

  const field = h("input", { type: "search", placeholder: "words of a prompt or an answer" });
  field.addEventListener("input", () => { state.words = field.value.toLowerCase(); draw(); });
  const last = info.branches[branch]?.head ?? Number(step);
  const groups = new Map(rows.map((row) => [`${row.part}/${row.group}`, row]));
  const decided = [...groups.values()].filter((row) => row.is_decided).length;
  const facts = [
    ["Reward", number(first.metrics["native/reward"])], ["Completions", rows.length.toLocaleString("en")],
    ["Groups without variance", `${decided} of ${groups.size}`],
    ["Cut off", percent(rows.filter((row) => row.is_cut_off).length / rows.length, 0)],
    ["Unscorable", percent(rows.filter((row) => row.reward === null).length / rows.length, 0)],
  ];
  draw();
  return h("div", { class: "fill" },
    h("div", { class: "run-title" }, h("h1", {}, `${branch}, step ${step}`), steps(run, branch, Number(step), last)),
    h("dl", { class: "facts" }, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    h("div", { class: "card" }, h("div", { class: "card-head" }, h("h2", {}, "Rewards"), h("span", { class: "note" }, "A bar filters the table; a second click takes it back.")),
      bars, h("div", { class: "histogram-axis", "aria-hidden": "true" }, h("span", {}, "0"), h("span", {}, "reward"), h("span", {}, "1"))),
    h("div", { class: "bar" },
      parts.length > 1 && choice("Part", [["", "All"], ...parts.map((name) => [name, `${name} (${first.parts[name]})`])], "", (part) => { state.part = part; draw(); }),
      select("Show", [["", "everything"], ["variance", "groups with variance"], ["decided", "groups without variance"], ["cut", "cut off"], ["unscorable", "unscorable"]], "", (only) => { state.only = only; draw(); }),
      h("label", { class: "field" }, h("span", {}, "Search"), field), told),
    grid.node);
}

function steps(run, branch, step, last) {
  const link = (number, text, label) => number >= 1 && number <= last && number !== step
    ? h("a", { class: "button", href: `#/run/${run}/step/${branch}/${number}`, "aria-label": label }, text)
    : h("span", { class: "button off", "aria-hidden": "true" }, text);
  return append(h("nav", { class: "pager", "aria-label": "Steps" }), [link(step - 1, "← Step", "the step before"), link(step + 1, "Step →", "the step after"), link(last, "Newest", "the newest step")]);
}
