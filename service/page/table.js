// A table of any length: only the rows that can be seen are nodes. Sorted by its heads, moved through by the keyboard.

import { fill, h } from "./dom.js";

const MORE = 12; // rows beyond what is seen, so that a quick scroll shows no hole

// columns: [{key, name, cell(row), sort?(row), class?}]; options: {rowHeight, onopen(row), label, kind}
export function table(columns, { rowHeight = 40, onopen, label, kind = "", sort: sorted = null }) {
  let rows = [];
  let order = sorted ?? { key: null, isDown: false };
  let active = 0;
  const body = h("div", { class: "vt-body", role: "rowgroup" });
  const scroller = h("div", { class: "vt-scroll", tabindex: 0, role: "rowgroup", "aria-label": `${label}: arrow keys move, Enter opens` }, body);
  const head = h("div", { class: "vt-row vt-head", role: "row" });
  const node = h("div", { class: `vt ${kind}`, role: "table", "aria-label": label }, h("div", { role: "rowgroup" }, head), scroller);
  body.setAttribute("role", "presentation");

  function drawHead() {
    fill(head, columns.map((column) => {
      const direction = order.key !== column.key ? "none" : order.isDown ? "descending" : "ascending";
      const arrow = { ascending: " ↑", descending: " ↓", none: "" }[direction];
      return h("div", { role: "columnheader", "aria-sort": column.sort ? direction : undefined, class: column.class },
        column.sort ? h("button", { type: "button", onclick: () => sortBy(column.key) }, column.name, arrow) : column.name);
    }));
  }

  function sortBy(key) {
    order = { key, isDown: order.key === key ? !order.isDown : true };
    arrange();
  }

  function arrange() {
    const column = columns.find((item) => item.key === order.key);
    if (column) {
      const sign = order.isDown ? -1 : 1;
      // What has no number comes last, whichever way.
      rows = [...rows].sort((a, b) => {
        const [x, y] = [column.sort(a), column.sort(b)];
        if (x === null || y === null) return (x === null) - (y === null);
        return sign * (x < y ? -1 : x > y ? 1 : 0);
      });
    }
    active = 0;
    scroller.scrollTop = 0;
    drawHead();
    draw();
  }

  function draw() {
    const first = Math.max(0, Math.floor(scroller.scrollTop / rowHeight) - MORE);
    const last = Math.min(rows.length, Math.ceil((scroller.scrollTop + scroller.clientHeight) / rowHeight) + MORE);
    body.style.height = `${rows.length * rowHeight}px`;
    node.setAttribute("aria-rowcount", String(rows.length + 1));
    fill(body, rows.slice(first, last).map((row, offset) => {
      const index = first + offset;
      return h("div", {
        class: index === active ? "vt-row active" : "vt-row", role: "row", "aria-rowindex": String(index + 2),
        css: { transform: `translateY(${index * rowHeight}px)`, height: `${rowHeight}px` },
        onclick: () => { active = index; onopen?.(row); },
      }, columns.map((column) => h("div", { role: "cell", class: column.class }, column.cell(row))));
    }));
    if (!rows.length) body.append(h("p", { class: "empty" }, "No row fits."));
  }

  let isAsked = false;
  scroller.addEventListener("scroll", () => {
    if (isAsked) return;
    isAsked = true;
    requestAnimationFrame(() => { isAsked = false; draw(); });
  });
  scroller.addEventListener("keydown", (event) => {
    const page = Math.floor(scroller.clientHeight / rowHeight);
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -rows.length, End: rows.length }[event.key];
    if (event.key === "Enter" && rows[active]) onopen?.(rows[active]);
    if (by === undefined) return;
    event.preventDefault();
    active = Math.min(rows.length - 1, Math.max(0, active + by));
    const top = active * rowHeight;
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    if (top + rowHeight > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = top + rowHeight - scroller.clientHeight;
    draw();
  });
  new ResizeObserver(draw).observe(scroller);
  drawHead();
  return { node, show(next) { rows = next; arrange(); } };
}
