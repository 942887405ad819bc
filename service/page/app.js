// The shell: which screen the address names, where one is, and whether the run is followed live.

import { get } from "./api.js";
import { fill, h, hideTip } from "./dom.js";
import { alarms } from "./alarms.js";
import { chat } from "./chat.js";
import { merge } from "./merge.js";
import { metrics } from "./metrics.js";
import { overview } from "./overview.js";
import { prompt } from "./prompt.js";
import { revisions } from "./revisions.js";
import { rollouts } from "./rollouts.js";
import { runs } from "./runs.js";

// Addresses: `:name` is any one part. A screen is `(context, parameters) => Promise<Node>`.
const SCREENS = [
  ["", runs, "Runs"],
  ["revisions", revisions, "Revisions"],
  ["chat", chat, "Chat"],
  ["run/:run", overview, "Overview"],
  ["run/:run/metrics", metrics, "Metrics"],
  ["run/:run/step/:branch/:step", rollouts, "Rollouts"],
  ["run/:run/step/:branch/:step/:part/:group", prompt, "Prompt"],
  ["run/:run/alarms", alarms, "Alarms and log"],
  ["run/:run/merge", merge, "Merge"],
  ["run/:run/revisions", revisions, "Revisions"],
  ["run/:run/chat", chat, "Chat"],
];
const TABS = [["", "Overview"], ["/metrics", "Metrics"], ["/alarms", "Alarms and log"], ["/merge", "Merge"], ["/revisions", "Revisions"], ["/chat", "Chat"]];
const TABS_OF_ALL = [["", "Runs"], ["revisions", "Revisions"], ["chat", "Chat"]];

let current = new AbortController();
let previous = "";

function match(path) {
  const parts = path.split("/").filter(Boolean).map(decodeURIComponent);
  for (const [pattern, screen, title] of SCREENS) {
    const names = pattern.split("/").filter(Boolean);
    if (names.length !== parts.length || names.some((name, index) => !name.startsWith(":") && name !== parts[index])) continue;
    return { screen, title, parameters: Object.fromEntries(names.map((name, index) => [name.slice(1), parts[index]])) };
  }
  return null;
}

export function live(state) {
  const node = document.getElementById("live");
  node.dataset.state = state;
  node.textContent = { live: "Live", away: "Reconnecting", finished: "Finished", "": "" }[state] ?? "";
}

function crumbs({ run, branch, step, part, group }) {
  const items = [["#/", "Runs"]];
  if (run) items.push([`#/run/${run}`, run]);
  if (step) items.push([`#/run/${run}/step/${branch}/${step}`, `${branch}@${step}`]);
  if (part) items.push([location.hash, `${part} ${Number(group) + 1}`]);
  fill(document.getElementById("crumbs"), h("ol", {}, items.map(([href, text], index) =>
    h("li", {}, h("a", { href, "aria-current": index === items.length - 1 ? "page" : undefined }, text)))));
}

function tabs(run) {
  const here = location.hash.split("?")[0] || "#/";
  fill(document.getElementById("tabs"), (run ? TABS : TABS_OF_ALL).map(([path, text]) => {
    const href = run ? `#/run/${run}${path}` : `#/${path}`;
    return h("a", { href, "aria-current": here === href ? "page" : undefined }, text);
  }));
  document.querySelector("#tabs [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" }); // on a phone
}

async function show() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  if (path === "main") return;
  current.abort();
  current = new AbortController();
  const { signal } = current;
  hideTip();
  const main = document.getElementById("main");
  const route = match(path) ?? { screen: () => h("p", { class: "empty" }, "There is no such screen."), title: "Not found", parameters: {} };
  const { parameters } = route;
  document.title = [route.title, parameters.run, "coevo"].filter(Boolean).join(" · ");
  crumbs(parameters);
  tabs(parameters.run);
  live("");
  main.setAttribute("aria-busy", "true");
  try {
    const facts = await get("/palette", {}, signal);
    const context = { signal, facts, colours: facts.colours[parameters.run] ?? {}, query: new URLSearchParams(query), live };
    const node = await route.screen(context, parameters);
    if (signal.aborted) return;
    fill(main, node);
    main.dataset.screen = `/${path}`;
    // Screen readers and the keyboard begin at the new screen; the first one leaves the focus where it is.
    if (previous && previous !== path) { main.focus({ preventScroll: true }); scrollTo(0, 0); }
    previous = path;
  } catch (error) {
    if (signal.aborted) return;
    fill(main, h("div", { class: "card failed" }, h("h1", {}, "Nothing to show"), h("p", {}, error.message), h("p", {}, parameters.run && h("a", { href: `#/run/${parameters.run}` }, parameters.run), " ", h("a", { href: "#/" }, "All runs"))));
  } finally {
    if (!signal.aborted) main.removeAttribute("aria-busy");
  }
}

addEventListener("hashchange", show);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("main").focus();
});
// `/` goes to the filter of a screen, Escape closes what is open, as in most tools.
addEventListener("keydown", (event) => {
  const isTyping = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
  if (event.key === "/" && !isTyping) {
    const field = document.querySelector("main input[type=search]");
    if (field) { event.preventDefault(); field.focus(); }
  } else if (event.key === "Escape") hideTip();
});
show();
