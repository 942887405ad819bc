// A curve for each branch, on uPlot: smoothing, log scale, zoom by dragging, and a click that opens the point's step.

import uPlot from "./uplot.js";
import { h, hideTip, showTip } from "./dom.js";
import { number } from "./format.js";

const FAINT = "40"; // alpha of a curve before smoothing, in hex

export const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// The mean of the last few points, without what is missing.
export function smooth(values, width) {
  if (width <= 1) return values;
  const result = new Array(values.length);
  const window = [];
  let sum = 0;
  for (let index = 0; index < values.length; index++) {
    if (values[index] !== null) {
      window.push(values[index]);
      sum += values[index];
      if (window.length > width) sum -= window.shift();
    }
    result[index] = values[index] === null ? null : sum / window.length;
  }
  return result;
}

// What never moves still needs an axis: uPlot's own would go to 100.
function range(_, low, high) {
  if (low === high) return [Math.min(low, 0), low > 0 ? 1.25 * low : 1];
  const room = (high - low) * 0.08;
  return [low >= 0 && low < room ? 0 : low - room, high + room];
}

// lines: [{name, colour, dash, steps, values}]; options: {height, smoothing, isLog, onpick(line, step), onzoom(first, last)}
export function chart(title, lines, { height = 190, smoothing = 1, isLog = false, onpick, onzoom, format = number, xlabel = "step" } = {}) {
  const shown = lines.filter((line) => line.values.some((value) => value !== null));
  const box = h("div", {
    class: "chart", tabindex: 0, role: onpick ? "application" : "img",
    "aria-label": `${title}: ${shown.map((line) => `${line.name} ${format(line.values.findLast((value) => value !== null))}`).join(", ")}. ${onpick ? "Arrow keys move along the steps, up and down between branches, Enter opens the rollouts." : ""}`,
  });
  if (!shown.length) {
    box.append(h("p", { class: "empty" }, "No numbers yet."));
    return { node: box, destroy() {} };
  }
  const positive = shown.every((line) => line.values.every((value) => value === null || value > 0));
  const tables = shown.map((line) => [line.steps, line.values]);
  const joined = uPlot.join(tables);
  const data = [joined[0]];
  const series = [{}];
  shown.forEach((line, index) => {
    const raw = joined[index + 1];
    if (smoothing > 1) {
      data.push(raw);
      series.push({ stroke: line.colour + FAINT, width: 1, spanGaps: true, points: { show: false } });
    }
    data.push(smooth(Array.from(raw, (value) => value ?? null), smoothing));
    series.push({ label: line.name, stroke: line.colour, width: 2, dash: line.dash, spanGaps: true, points: { show: raw.length < 60, size: 5, fill: line.colour } });
  });
  const axis = { stroke: token("--muted"), grid: { stroke: token("--line"), width: 1 }, ticks: { show: false }, font: `11px ${token("--font")}` };
  const perLine = smoothing > 1 ? 2 : 1;
  let picked = 0;

  // Of all curves the one nearest to the pointer; by the keyboard the one that was chosen with up and down.
  const nearest = (plot) => {
    const { idx, top } = plot.cursor;
    let best = null;
    shown.forEach((line, index) => {
      const value = data[index * perLine + perLine][idx];
      if (value === null || value === undefined) return;
      const distance = Math.abs(plot.valToPos(value, "y") - top);
      if (best === null || distance < best.distance) best = { line, index, step: data[0][idx], value, distance };
    });
    return best;
  };
  const tell = (plot, point, x, y) => {
    const rows = shown.map((line, index) => [line, data[index * perLine + perLine][plot.cursor.idx]])
      .filter(([, value]) => value !== null && value !== undefined);
    showTip(x, y, h("strong", {}, `${xlabel} ${data[0][plot.cursor.idx]}`), rows.slice(0, 16).map(([line, value]) =>
      h("div", { class: line === point.line ? "tip-row picked" : "tip-row" }, dot(line.colour), line.name, h("b", {}, format(value)))));
  };
  const plot = new uPlot({
    width: 300, height,
    legend: { show: false },
    padding: [8, 8, 0, 0],
    cursor: { drag: { x: Boolean(onzoom), y: false, setScale: false }, points: { size: 7 }, y: false },
    scales: { x: { time: false }, y: { distr: isLog && positive ? 3 : 1, range: isLog && positive ? undefined : range } },
    axes: [{ ...axis, size: 28, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000] },
      { ...axis, size: 50, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : format(tick))) }],
    series,
    hooks: {
      setCursor: [(plot) => {
        if (plot.cursor.idx === null || plot.cursor.left < 0) return hideTip();
        const point = nearest(plot);
        const rect = plot.over.getBoundingClientRect();
        if (point && box.matches(":hover")) tell(plot, point, rect.left + plot.cursor.left, rect.top + plot.cursor.top);
      }],
      setSelect: [(plot) => {
        if (plot.select.width < 8) return;
        const [from, to] = [plot.select.left, plot.select.left + plot.select.width].map((x) => Math.round(plot.posToVal(x, "x")));
        plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
        onzoom?.(from, Math.max(to, from + 1));
      }],
    },
  }, data, box);

  let down = null;
  plot.over.addEventListener("mousedown", (event) => { down = event.clientX; });
  plot.over.addEventListener("click", (event) => {
    const point = nearest(plot);
    if (point && onpick && Math.abs(event.clientX - down) < 5) onpick(point.line, point.step);
  });
  plot.over.addEventListener("dblclick", () => onzoom?.(null, null));
  plot.over.addEventListener("mouseleave", hideTip);
  box.addEventListener("blur", hideTip);
  box.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
    if (by === undefined && !["ArrowUp", "ArrowDown", "Enter"].includes(event.key)) return;
    event.preventDefault();
    if (event.key === "ArrowUp") picked = (picked + shown.length - 1) % shown.length;
    if (event.key === "ArrowDown") picked = (picked + 1) % shown.length;
    const index = Math.min(data[0].length - 1, Math.max(0, (plot.cursor.idx ?? data[0].length - 1) + (by ?? 0)));
    const value = data[picked * perLine + perLine][index];
    if (event.key === "Enter") return onpick?.(shown[picked], data[0][index]);
    plot.setCursor({ left: plot.valToPos(data[0][index], "x"), top: value === null ? 0 : plot.valToPos(value, "y") });
    const rect = plot.over.getBoundingClientRect();
    tell(plot, { line: shown[picked] }, rect.left + plot.cursor.left, rect.top + plot.cursor.top);
  });
  const observer = new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (width > 0 && width !== plot.width) plot.setSize({ width, height });
  });
  observer.observe(box);
  return { node: box, destroy() { observer.disconnect(); plot.destroy(); } };
}

export function dot(colour) {
  return h("span", { class: "dot", css: { "--c": colour }, "aria-hidden": "true" });
}

// Which branch has which colour; each can be switched off.
export function legend(names, colours, off, onchange) {
  return h("div", { class: "legend", role: "group", "aria-label": "Branches that are drawn" }, names.map((name) => {
    const button = h("button", { type: "button", "aria-pressed": String(!off.has(name)) }, dot(colours[name]), name);
    button.addEventListener("click", () => {
      if (!off.delete(name)) off.add(name);
      button.setAttribute("aria-pressed", String(!off.has(name)));
      onchange();
    });
    return button;
  }));
}

// The dash of a branch: colours come again after the eighth.
export function dashOf(facts, names, name) {
  return facts.dashes[Math.floor(names.indexOf(name) / 8) % facts.dashes.length];
}
