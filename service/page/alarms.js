// What deserves a look and what to do about it; what the run told; and the logs of its processes, merged or split.

import { get, getAll, post } from "./api.js";
import { card, choice, copyable, empty, fill, h, select } from "./dom.js";
import { clock } from "./format.js";
import { table } from "./table.js";
import { watch } from "./watch.js";

const REFRESH_MS = 2000;
const KINDS = ["warning", "failed", "lease", "overlap", "accuracy", "rhythm", "tracker", "run"];
const COMMAND = /coevo (?:jobs retry [\w-]+|status)/; // of a remedy; the service has no others

function words(note) {
  switch (note.kind) {
    case "warning": return `${note.branch}@${note.step}: ${note.warnings.join("; ")}`;
    case "failed": return `${note.branch}@${note.step} failed${note.dead ? " for good" : ""}: ${note.error}`;
    case "lease": return `${note.worker} ${note.what} ${note.job}`;
    case "overlap": return note.alarms.length ? note.alarms.join("; ") : `branches compared at the end of ${note.phase}, step ${note.step}`;
    case "accuracy": return `accuracies measured after step ${note.step}`;
    case "rhythm": return `cycle ${note.cycle + 1}: ${note.rlvr_steps} steps of rewards, ${note.opd_steps} of teachers`;
    case "run": return `the run is ${note.state}`;
    default: return note.text ?? note.kind;
  }
}

// The level of a line, as Python and vLLM write it.
function levelOf(line) {
  if (/\b(ERROR|CRITICAL|Traceback|\w+Error:)/.test(line)) return "error";
  return /\bWARN(ING)?\b|Warning:/.test(line) ? "warning" : "info";
}

export async function alarms(context, { run }) {
  const { signal } = context;
  const list = h("div", { class: "alarms" });
  const notes = table([
    { key: "at", name: "When", class: "c-when", sort: (note) => note.number, cell: (note) => clock(note.at) },
    { key: "kind", name: "Kind", class: "c-kind", sort: (note) => note.kind, cell: (note) => h("span", { class: `mark ${note.kind === "failed" ? "bad" : ""}` }, note.kind) },
    { key: "words", name: "What", class: "c-words", cell: (note) => h("span", { class: "ellipsis", title: words(note) }, words(note)) },
  ], { rowHeight: 32, label: "What the run told", kind: "notes", onopen: (note) => { if (note.step && note.branch) location.hash = `#/run/${run}/step/${note.branch}/${note.step}`; } });
  let all = [];
  let kind = "";

  async function draw() {
    const { alarms } = await get(`/runs/${run}/alarms`, {}, signal);
    const dead = context.facts.is_read_only || !alarms.some((alarm) => alarm.retry) ? [] : (await get("/jobs", {}, signal)).dead;
    fill(list, alarms.length ? alarms.map((alarm) => {
      const command = alarm.remedy.match(COMMAND)?.[0];
      return h("article", { class: `alarm-item ${alarm.level}` }, h("h3", {}, h("span", { class: "level" }, alarm.level), alarm.where), h("p", {}, alarm.text),
        h("p", { class: "remedy" }, alarm.remedy), h("div", { class: "bar" }, command && copyable(command), retry(dead.find((job) => job.branch === alarm.retry), draw, signal)));
    }) : empty("Nothing deserves a look now."));
    all = await getAll(`/runs/${run}/notes`, {}, "notes", signal);
    notes.show(all.filter((note) => !kind || note.kind === kind).reverse());
  }
  await draw();
  watch(context, run, draw);
  return h("div", {}, h("h1", {}, "Alarms and log"), card("What deserves a look", null, list),
    card("What the run told", select("Kind", [["", "all"], ...KINDS.map((name) => [name, name])], "", (next) => { kind = next; notes.show(all.filter((note) => !kind || note.kind === kind).reverse()); }), notes.node),
    await logs(signal));
}

// A button where the queue says that a job is dead: its branch stands still until somebody says so.
function retry(job, draw, signal) {
  if (!job) return null;
  const told = h("span", { class: "note", role: "status" });
  const button = h("button", { type: "button", class: "small primary" }, `Try ${job.job} again`);
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await post(`/jobs/${job.branch}/retry`, { job: job.job }, signal);
      await draw();
    } catch (error) {
      told.textContent = error.message;
      button.disabled = false;
    }
  });
  return [button, told];
}

async function logs(signal) {
  const infos = (await get("/logs", {}, signal)).logs;
  if (!infos.length) return card("Logs", null, empty("The service was not started by coevo run, so the processes keep their logs elsewhere."));
  const state = { name: "", level: "", words: "", isSplit: false, lines: [], ends: new Map() };
  const box = h("div", { class: "logs" });

  async function more() {
    let isNew = false;
    for (const { name } of infos) {
      const answer = await get(`/logs/${name}`, { after: state.ends.get(name) }, signal);
      state.ends.set(name, answer.next);
      isNew ||= answer.lines.length > 0;
      state.lines.push(...answer.lines.map((text) => ({ name: name.replace(".log", ""), text, level: levelOf(text) })));
    }
    state.lines = state.lines.slice(-20000); // a tab that is open for a week stays small
    if (isNew) draw();
  }

  function draw() {
    const shown = state.lines.filter((line) => (!state.name || line.name === state.name) && (!state.level || line.level === state.level || (state.level === "warning" && line.level === "error"))
      && line.text.toLowerCase().includes(state.words));
    const names = state.isSplit ? [...new Set(shown.map((line) => line.name))] : [null];
    fill(box, names.map((name) => h("div", { class: "log" }, name && h("h3", {}, name),
      h("pre", { tabindex: 0, role: "log", "aria-label": `log ${name ?? "of all processes"}` }, shown.filter((line) => name === null || line.name === name).slice(-500).map((line) =>
        h("span", { class: `line ${line.level}` }, name === null && h("b", {}, line.name.padEnd(12)), line.text, "\n"))))), !shown.length && empty("No line fits."));
    box.querySelectorAll("pre").forEach((pre) => { pre.scrollTop = pre.scrollHeight; });
  }
  const field = h("input", { type: "search", placeholder: "words" });
  field.addEventListener("input", () => { state.words = field.value.toLowerCase(); draw(); });
  await more();
  draw();
  const timer = setInterval(() => more().catch(() => {}), REFRESH_MS);
  signal.addEventListener("abort", () => clearInterval(timer));
  return card("Logs", null, h("div", { class: "bar" },
    select("Process", [["", "all"], ...infos.map(({ name }) => [name.replace(".log", ""), name.replace(".log", "")])], "", (name) => { state.name = name; draw(); }),
    select("Level", [["", "all"], ["warning", "warnings and errors"], ["error", "errors"]], "", (level) => { state.level = level; draw(); }),
    choice("View", [[false, "Merged"], [true, "Split"]], false, (isSplit) => { state.isSplit = isSplit; draw(); }),
    h("label", { class: "field" }, h("span", {}, "Search"), field)), box);
}
