// The merge: how good it is beside its branches, what it was made of, which scale answers best, and how to have it.

import { get, post, save } from "./api.js";
import { dot } from "./chart.js";
import { card, choice, copyable, empty, fill, h } from "./dom.js";
import { bytes, number, percent } from "./format.js";

export async function merge({ signal, colours, facts }, { run }) {
  const { results, merge: record, scales, adapter, folder } = await get(`/runs/${run}/results`, {}, signal);
  if (!results && !record) return h("div", {}, h("h1", {}, "Merge"), empty("There is no merge yet: coevo run makes it after the last step."));
  return h("div", {}, h("h1", {}, "Merge"), results && accuracies(results, colours, facts),
    record && h("div", { class: "grid two" }, parts(record, colours), change(record)), scaleCard(scales, record, folder), Object.keys(adapter).length > 0 && adapterCard(adapter, record, facts, run, folder, signal));
}

// The merge as one adapter: its branches stacked, so its rank is the sum of theirs.
function adapterCard(files, record, facts, run, folder, signal) {
  const told = h("p", { class: "note", role: "status" });
  const fail = (error) => { told.textContent = error.message; };
  const downloads = Object.entries(files).map(([name, size]) =>
    h("button", { type: "button", onclick: () => save(`/runs/${run}/merged-adapter/${name}`, name).catch(fail) }, `Download ${name}, ${bytes(size)}`));
  const serve = h("button", { type: "button", class: "primary", onclick: async () => {
    serve.disabled = true;
    try {
      const { name } = await post(`/runs/${run}/merged-adapter/serve`, { name: "merged" }, signal);
      fill(told, `It is served as ${name} until the service ends. `, h("a", { href: `#/run/${run}/chat?a=base&b=${name}` }, "Ask it beside the base"));
    } catch (error) {
      fail(error);
      serve.disabled = false;
    }
  } }, "Serve it here");
  const rank = record?.branches.reduce((sum, branch) => sum + branch.rank, 0);
  const room = RANKS.find((size) => size >= rank); // a service has that of the branches otherwise
  return card("The merge as one adapter", rank && `its branches stacked, rank ${rank}`,
    h("div", { class: "bar" }, !facts.is_read_only && serve, downloads), told, h("p", {}, "A service has it from its start by"),
    copyable(`coevo serve ${folder}/recipe.json --store ${folder}/store --runs ${folder}/runs --extra merged=${folder}/merged-adapter${room ? ` --max-lora-rank ${room}` : ""}`));
}

const RANKS = [8, 16, 32, 64, 128, 256, 320, 512]; // that vLLM can have as the largest
const branchOf = (model) => model.split("@")[0];

// Accuracies with their intervals on one axis, so that what overlaps is seen to overlap.
function accuracies({ results }, colours, facts) {
  const ways = [...new Set(results.map((row) => row.way))];
  const exams = [...new Set(results.map((row) => row.exam))];
  const box = h("div", { class: "grid three roomy" });
  const draw = (way) => fill(box, exams.map((exam) => {
    const rows = results.filter((row) => row.exam === exam && row.way === way);
    return h("figure", {}, h("figcaption", {}, exam), rows.map((row) => {
      const { mean, low, high } = row.accuracy;
      const colour = row.model === "merged" ? "var(--ink)" : colours[branchOf(row.model)] ?? facts.neutral;
      return h("div", { class: "interval" }, h("span", { class: "name" }, dot(colour), row.model),
        h("div", { class: "interval-track", role: "img", "aria-label": `${row.model} ${percent(mean)}, 95 % interval ${percent(low)} to ${percent(high)}` },
          row.blind !== null && h("i", { class: "blind", css: { left: percent(row.blind).replace(" ", "") }, title: `blind ${percent(row.blind)}` }),
          low !== null && h("i", { class: "range-line", css: { left: `${100 * low}%`, width: `${100 * (high - low)}%`, "--c": colour } }),
          h("i", { class: "point", css: { left: `${100 * mean}%`, "--c": colour } })),
        h("b", { class: "num" }, percent(mean)));
    }));
  }));
  draw(ways[0]);
  return card("Accuracy on held-out questions", ways.length > 1 ? choice("Answers", ways.map((way) => [way, way]), ways[0], draw) : ways[0], box,
    h("p", { class: "note" }, "Lines are 95 % intervals. The grey mark is what blind answers reach."));
}

function parts(record, colours) {
  const names = record.branches.map((branch) => branch.name);
  return card("What it is made of", `${record.method}, scale ${record.scale}`, h("div", { class: "scroll", tabindex: 0 }, h("table", { class: "plain" },
    h("thead", {}, h("tr", {}, ["Branch", "Revision", "Weight", "Rank"].map((text, index) => h("th", { scope: "col", class: index > 1 ? "num" : "" }, text)))),
    h("tbody", {}, record.branches.map((branch) => h("tr", {}, h("td", {}, dot(colours[branch.name]), branch.name), h("td", { class: "mono" }, branch.source),
      h("td", { class: "num" }, percent(branch.share)), h("td", { class: "num" }, branch.rank)))))),
  h("h3", {}, "Cosine of the branches' deltas"), h("div", { class: "scroll", tabindex: 0 }, h("table", { class: "matrix" }, h("thead", {}, h("tr", {}, h("td", {}), names.map((name) => h("th", { scope: "col" }, dot(colours[name]), name)))),
    h("tbody", {}, names.map((a) => h("tr", {}, h("th", { scope: "row" }, dot(colours[a]), a), names.map((b) => {
      if (a === b) return h("td", { class: "same" }, "·");
      const value = record.cosines[`${a} ${b}`] ?? record.cosines[`${b} ${a}`] ?? null;
      return h("td", { class: "cell", css: { "--apart": `${Math.round(Math.abs(value ?? 0) * 55)}%` } }, number(value, 2));
    })))))));
}

function change(record) {
  const most = Math.max(...record.layer_norms);
  return card("What it changes", null, h("dl", { class: "facts" }, [["Weights changed", percent(record.changed)], ["Rounded away", record.lost === null ? "–" : percent(record.lost)], ["Largest error", number(record.largest_difference)]].map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
    h("h3", {}, "Norm of the delta by layer"), h("div", { class: "layers", role: "img", "aria-label": record.layer_norms.map((norm, layer) => `layer ${layer}: ${number(norm)}`).join(", ") }, record.layer_norms.map((norm, layer) =>
      h("div", { title: `layer ${layer}: ${number(norm)}` }, h("i", { css: { height: `${(80 * norm) / most}%` } }), h("span", {}, layer)))));
}

// The slider goes over scales that were measured, and between them along the line that joins their accuracies.
function scaleCard(scales, record, folder) {
  const command = h("div", {});
  const told = h("output", {});
  const [low, high] = scales.length ? [scales[0].scale, scales.at(-1).scale] : [0.5, 2];
  const slider = h("input", { type: "range", min: low, max: high, step: 0.05, value: record?.scale ?? 1, "aria-label": "Scale of the merged delta" });
  const dotNode = h("i", { class: "point" });
  const accuracy = (scale) => {
    const right = scales.findIndex((point) => point.scale >= scale);
    if (right <= 0) return scales[Math.max(0, right)]?.accuracy ?? null;
    const [a, b] = [scales[right - 1], scales[right]];
    return a.accuracy + ((b.accuracy - a.accuracy) * (scale - a.scale)) / (b.scale - a.scale);
  };
  const values = scales.map((point) => point.accuracy);
  const [bottom, top] = [Math.min(...values) - 0.02, Math.max(...values) + 0.02];
  const place = (scale, value) => [`${(100 * (scale - low)) / (high - low)}%`, `${(100 * (value - bottom)) / (top - bottom)}%`];
  const move = () => {
    const scale = Number(slider.value);
    const value = accuracy(scale);
    told.textContent = `scale ${scale.toFixed(2)}${value === null ? "" : `: about ${percent(value)}`}`;
    if (value !== null) [dotNode.style.left, dotNode.style.bottom] = place(scale, value);
    fill(command, copyable(`coevo merge ${folder} --out merged-${scale.toFixed(2)} --scale ${scale.toFixed(2)}`));
  };
  slider.addEventListener("input", move);
  move();
  return card("Scale", "how far the merged delta is taken", scales.length
    ? h("div", { class: "curve", role: "img", "aria-label": scales.map((point) => `scale ${point.scale}: ${percent(point.accuracy)}`).join(", ") }, scales.map((point) => {
      const [left, up] = place(point.scale, point.accuracy);
      return h("i", { class: "measured", css: { left, bottom: up }, title: `scale ${point.scale}: ${percent(point.accuracy)}` });
    }), dotNode)
    : h("p", { class: "note" }, "No validation curve was measured: coevo merge RUN --out DIR --scale auto measures six scales."),
  h("div", { class: "range wide" }, slider, told), h("p", {}, "The checkpoint at this scale is made by"), command);
}
