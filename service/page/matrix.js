// Shared probability, overlap of likeliest tokens and KL between every two branches, with a slider over the phase ends.

import { dot } from "./chart.js";
import { choice, empty, fill, h, select } from "./dom.js";

const REACH = 0.97; // shared probability below which a student is out of a teacher's reach, as in the service's alarms
const MEASURES = [["shared", "Shared"], ["overlap", "Overlap"], ["kl", "KL, nats"]];

export function matrix(colours) {
  const node = h("div", {});
  const state = { events: [], index: null, measure: null, capability: "mean" };
  const grid = h("div", { class: "scroll", tabindex: 0 });
  const told = h("output", { for: "cycle" });
  const slider = h("input", { id: "cycle", type: "range", min: 0, step: 1, "aria-label": "Phase end" });
  slider.addEventListener("input", () => { state.index = Number(slider.value); draw(); });

  function value(event, a, b) {
    const values = event[state.measure][a][b];
    if (state.capability !== "mean") return values[event.capabilities.indexOf(state.capability)];
    return values.reduce((sum, item) => sum + item, 0) / values.length;
  }

  function draw() {
    const event = state.events[state.index];
    told.textContent = `${{ rlvr: "end of phase I", opd: "end of phase II" }[event.phase] ?? event.phase}, step ${event.step}`;
    const names = event.branches.map((ref) => ref.split("@")[0]);
    const all = state.events.flatMap((item) => item.branches.flatMap((_, a) => item.branches.map((__, b) => (a === b ? null : value(item, a, b))))).filter((item) => item !== null);
    const [low, high] = [Math.min(...all), Math.max(...all)];
    fill(grid, h("table", { class: "matrix" },
      h("caption", { class: "hidden" }, `${state.measure} of students (rows) and teachers (columns)`),
      h("thead", {}, h("tr", {}, h("td", {}, "student ↓ teacher →"), names.map((name) => h("th", { scope: "col" }, dot(colours[name]), name)))),
      h("tbody", {}, names.map((name, a) => h("tr", {}, h("th", { scope: "row" }, dot(colours[name]), name), names.map((_, b) => {
        if (a === b) return h("td", { class: "same" }, "·");
        const number = value(event, a, b);
        // Darker is farther apart in every measure: that is what one looks for.
        const share = high > low ? (number - low) / (high - low) : 0;
        const apart = state.measure === "kl" ? share : 1 - share;
        const isOut = state.measure === "shared" && number < REACH && name !== "base" && names[b] !== "base";
        return h("td", { class: isOut ? "cell out" : "cell", css: { "--apart": `${Math.round(apart * 55)}%` } }, number.toFixed(state.measure === "kl" ? 4 : 3), isOut && h("span", { class: "hidden" }, " out of reach"));
      }))))));
  }

  return {
    node,
    show(events) {
      const isAtEnd = state.index === null || state.index === state.events.length - 1;
      state.events = events;
      if (!events.length) return fill(node, empty("Measured at every phase end, for up to eight branches. None is reached yet."));
      if (isAtEnd) state.index = events.length - 1;
      slider.max = String(events.length - 1);
      slider.value = String(state.index);
      const last = events.at(-1);
      // Older runs have not measured what is shared.
      const measures = MEASURES.filter(([key]) => events.every((event) => event[key]));
      state.measure ??= measures[0][0];
      fill(node, h("div", { class: "bar" },
        choice("Measure", measures, state.measure, (measure) => { state.measure = measure; draw(); }),
        select("Prompts of", [["mean", "all capabilities"], ...last.capabilities.map((name) => [name, name])], state.capability, (name) => { state.capability = name; draw(); })),
      grid, h("div", { class: "range wide" }, slider, told),
      h("p", { class: "note" }, `Shared: the probability that two models have in common. Below ${REACH} a student is out of its teacher's reach. Overlap: how many of the ${last.top_k} likeliest tokens they have in common.`));
      draw();
    },
  };
}
