// Every revision of every branch: where it came from, what it is, and how to have it or let it go.

import { get, request, save } from "./api.js";
import { dot } from "./chart.js";
import { card, choice, h, select } from "./dom.js";
import { bytes, clock, number } from "./format.js";
import { table } from "./table.js";

const FILE = "adapter_model.safetensors";

export async function revisions({ signal, colours: own, facts }, { run }) {
  const colours = run ? own : Object.assign({}, ...Object.values(facts.colours));
  const retired = new Set();
  const all = [];
  for (let after; ; ) {
    const page = await get("/revisions", { after }, signal);
    all.push(...page.revisions);
    page.retired.forEach((ref) => retired.add(ref));
    if (page.next === null) break;
    after = page.next;
  }
  const heads = new Map();
  for (const { branch, revision } of all) heads.set(branch, Math.max(revision, heads.get(branch) ?? 0));
  const ref = (item) => `${item.branch}@${item.revision}`;
  const parent = (item) => item.origin ?? (item.parent === null ? "base" : `${item.branch}@${item.parent}`);
  const size = (item) => Object.values(item.files).reduce((sum, file) => sum + file.bytes, 0);
  const told = h("span", { class: "note", role: "status" });
  const state = { branch: "", kind: "" };

  const grid = table([
    { key: "ref", name: "Revision", class: "c-ref", sort: (item) => `${item.branch}${String(item.revision).padStart(9, "0")}`,
      cell: (item) => [h("span", { class: "rail", css: { "--c": colours[item.branch] ?? facts.neutral } }, h("i", { class: item.meta.phase_end ? "big" : "" })), h("b", {}, ref(item)),
        heads.get(item.branch) === item.revision && h("span", { class: "mark good" }, "head"), item.meta.phase_end && h("span", { class: "mark" }, "phase end"), retired.has(ref(item)) && h("span", { class: "mark off" }, "retired")] },
    { key: "parent", name: "From", class: "c-from", cell: (item) => [item.origin && h("span", { class: "mark" }, "fork"), parent(item)] },
    { key: "reward", name: "Reward", class: "num c-reward", sort: (item) => item.meta.metrics?.["native/reward"] ?? null, cell: (item) => number(item.meta.metrics?.["native/reward"]) },
    { key: "digest", name: "Digest", class: "c-digest mono", cell: (item) => h("span", { title: item.digest }, item.digest.slice(7, 19)) },
    { key: "size", name: "Size", class: "num c-size", sort: size, cell: (item) => (retired.has(ref(item)) ? "–" : bytes(size(item))) },
    { key: "created", name: "Published", class: "c-created", sort: (item) => item.created, cell: (item) => clock(item.created) },
    { key: "do", name: "", class: "c-do", cell: (item) => [
      run && item.revision > 0 && h("a", { href: `#/run/${run}/step/${item.branch}/${item.revision}`, class: "button small" }, "Rollouts"),
      !facts.is_read_only && !retired.has(ref(item)) && item.revision > 0 && h("a", { href: `#/${run ? `run/${run}/` : ""}chat?a=base&b=${ref(item)}`, class: "button small" }, "Ask"),
      !facts.is_read_only && !retired.has(ref(item)) && item.files[FILE] && h("button", { type: "button", class: "small", onclick: (event) => { event.stopPropagation(); download(item); } }, "Download"),
      !facts.is_read_only && !retired.has(ref(item)) && heads.get(item.branch) !== item.revision && h("button", { type: "button", class: "small danger", onclick: (event) => { event.stopPropagation(); retire(item); } }, "Retire"),
    ] },
  ], { rowHeight: 36, label: "Revisions", kind: "revisions" });

  const download = (item) => save(`/adapters/${item.branch}/${item.revision}/${FILE}`, `${item.branch}-${item.revision}.safetensors`);

  async function retire(item) {
    if (!confirm(`Retire ${ref(item)}? Its files go for good; its manifest stays.`)) return;
    await request(`/adapters/${item.branch}/${item.revision}`, { method: "DELETE", signal });
    retired.add(ref(item));
    draw();
  }

  function draw() {
    const shown = all.filter((item) => (!state.branch || item.branch === state.branch)
      && (!state.kind || (state.kind === "ends" ? item.meta.phase_end || heads.get(item.branch) === item.revision : !retired.has(ref(item)))));
    told.textContent = `${shown.length} of ${all.length} revisions, ${bytes(shown.filter((item) => !retired.has(ref(item))).reduce((sum, item) => sum + size(item), 0))} on the disk`;
    grid.show([...shown].reverse());
  }
  draw();
  return h("div", { class: "fill" }, h("h1", {}, "Revisions"),
    h("div", { class: "bar" }, select("Branch", [["", "all"], ...[...heads.keys()].map((name) => [name, name])], "", (branch) => { state.branch = branch; draw(); }),
      choice("Which", [["", "All"], ["live", "With files"], ["ends", "Heads and phase ends"]], "", (kind) => { state.kind = kind; draw(); }), told),
    tree(), grid.node);

  // Branches as lines: where each begins, and which revisions ended a phase.
  function tree() {
    const most = Math.max(...heads.values(), 1);
    return card("Tree", "dots are phase ends", [...heads.keys()].map((branch) => {
      const own = all.filter((item) => item.branch === branch);
      return h("div", { class: "tree" }, h("span", { class: "name" }, dot(colours[branch] ?? facts.neutral), branch),
        h("div", { class: "tree-line", role: "img", "aria-label": `${branch}: from ${parent(own[0])} to revision ${heads.get(branch)}`, css: { "--c": colours[branch] ?? facts.neutral, "--w": `${(100 * heads.get(branch)) / most}%` } },
          own.filter((item) => item.meta.phase_end || item.revision === heads.get(branch)).map((item) => h("i", { title: ref(item), css: { left: `${(100 * item.revision) / most}%` } }))),
        h("span", { class: "note" }, own[0].origin ? `fork of ${own[0].origin}` : "from the base"));
    }));
  }
}
