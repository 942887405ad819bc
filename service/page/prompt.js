// A prompt: its pictures, and all completions of its group side by side, every token coloured.

import { get, mediaUrl } from "./api.js";
import { choice, fill, h, hideTip, showTip } from "./dom.js";
import { number, signed } from "./format.js";
import { scorer } from "./score.js";

const CHUNK = 256; // tokens that become nodes together, when they come near the screen
const LEVELS = 5;
const FULL = { advantage: 1.5, delta: 2, logprob: 4 }; // of a colour at its strongest: nats, or standard deviations

export async function prompt(context, { run, branch, step, part, group }) {
  const { signal } = context;
  const path = `/runs/${run}/rollouts/${branch}/${step}`;
  const data = await get(`${path}/groups/${encodeURIComponent(part)}/${group}`, {}, signal);
  const hasDelta = data.completions.some((completion) => completion.delta);
  const modes = [["none", "Plain"], ["advantage", "Advantage"], ["logprob", "Log-probability"], ...(hasDelta ? [["delta", `${part} minus ${branch}`]] : [])];
  let mode = modes.some(([name]) => name === sessionStorage.getItem("coevo-mode")) ? sessionStorage.getItem("coevo-mode") : hasDelta ? "delta" : "advantage";
  const picker = h("div", {});
  const strips = data.completions.map((completion) => tokens(completion, { part, branch }));
  const scale = h("div", { class: "scale", "aria-hidden": "true" });

  function colour(next) {
    mode = next;
    sessionStorage.setItem("coevo-mode", mode);
    strips.forEach((strip) => strip.colour(mode));
    const ends = { advantage: ["worse than its group", "better"], logprob: ["likely", "unlikely"], none: [] }[mode] ?? ["the teacher finds it less likely", "more likely"];
    fill(scale, ends.length > 0 && [h("span", {}, ends[0]), h("i", { class: `ramp ${mode === "logprob" ? mode : "delta"}` }), h("span", {}, ends[1])]);
  }
  const pick = (next) => {
    colour(next);
    fill(picker, choice("Tokens coloured by", modes, next, colour));
  };
  const live = await scorer(data, branch, context, (names) => {
    for (const name of names) if (!modes.some(([known]) => known === `by ${name}`)) modes.push([`by ${name}`, `${name} minus ${branch}`]);
    pick(`by ${names[0]}`);
  });

  const best = Math.max(...data.completions.map((completion) => completion.reward ?? -Infinity));
  const columns = data.completions.map((completion, index) => h("article", { class: "card completion", "aria-label": `Completion ${index + 1}` },
    h("header", {},
      h("b", { class: completion.reward === best && best > 0 ? "reward good" : "reward" }, completion.reward === null ? "unscorable" : number(completion.reward)),
      h("span", { class: "note" }, completion.advantages ? `advantage ${signed(mean(completion.advantages))}` : "left its group", " · ", `${completion.token_ids.length.toLocaleString("en")} tokens`),
      completion.is_cut_off && h("span", { class: "mark bad" }, "cut off")),
    strips[index].node,
    completion.why && h("p", { class: "why" }, completion.why)));
  pick(mode);

  const go = (by) => {
    const next = Number(group) + by;
    if (next >= 0 && next < data.groups) location.hash = `#/run/${run}/step/${branch}/${step}/${encodeURIComponent(part)}/${next}`;
  };
  addEventListener("keydown", (event) => {
    if (/^(INPUT|TEXTAREA|SELECT|VIDEO)$/.test(event.target.tagName) || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowLeft" || event.key === "k") go(-1);
    if (event.key === "ArrowRight" || event.key === "j") go(1);
  }, { signal });
  const earlier = h("span", {});
  get(`${path}/prompts/${data.prompt_id}`, {}, signal).then((places) => places.length && fill(earlier, h("span", { class: "note" }, "The same prompt in step "), places.map((place) =>
    h("a", { class: "button", href: `#/run/${run}/step/${branch}/${place.step}/${encodeURIComponent(place.part)}/${place.group}` }, String(place.step))))).catch(() => {});
  return h("div", {},
    h("div", { class: "run-title" }, h("h1", {}, `Prompt ${Number(group) + 1} of ${data.groups}`), h("span", { class: "badge" }, `${part} · ${branch}@${step}`),
      h("nav", { class: "pager", "aria-label": "Prompts" },
        h("button", { type: "button", disabled: Number(group) === 0, onclick: () => go(-1) }, "← Previous"),
        h("button", { type: "button", disabled: Number(group) + 1 === data.groups, onclick: () => go(1) }, "Next →"), earlier)),
    h("section", { class: "card question", "aria-label": "The prompt" },
      h("div", { class: "media" }, data.media.map((id) => picture(id, signal))),
      h("p", { class: "asked", tabindex: 0 }, data.question), h("p", {}, h("span", { class: "note" }, "Answer "), h("b", {}, data.answer))),
    h("div", { class: "bar" }, picker, scale), live,
    h("div", { class: "completions" }, columns));
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);

function picture(id, signal) {
  const box = h("figure", {}, h("span", { class: "note" }, "loading"));
  mediaUrl(id, signal).then(({ url, type }) => {
    if (type.startsWith("video/")) fill(box, clip(id, url, signal));
    else if (type.startsWith("image/")) fill(box, h("img", { src: url, alt: "a picture of the prompt", class: "pixels" }));
    else fill(box, h("span", { class: "note" }, "a file of a kind that is not shown"));
  }).catch((error) => fill(box, h("span", { class: "note" }, signal.aborted ? "" : error.message)));
  return box;
}

// Frames of a clip beside each other, as the service decodes them; and the clip itself where the browser knows its codec.
function clip(id, url, signal) {
  const strip = h("img", { alt: "frames of the clip, from left to right", class: "pixels strip" });
  mediaUrl(`${id}/frames`, signal).then((frames) => { strip.src = frames.url; }).catch(() => strip.remove());
  const video = h("video", { controls: true, loop: true, "aria-label": "the clip of the prompt", hidden: true });
  video.addEventListener("loadeddata", () => { video.hidden = false; });
  video.src = url;
  return [strip, video];
}

// The tokens of a completion in chunks. A chunk is nodes only near the screen: 16 completions of 16k tokens are many.
function tokens(completion, { part, branch }) {
  const node = h("div", { class: "tokens", tabindex: 0, role: "group", "aria-label": "tokens" });
  if (!completion.pieces) {
    node.append(completion.text);
    return { node, colour() {} };
  }
  let mode = "none";
  const chunks = [];
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) if (isIntersecting) draw(target);
  }, { rootMargin: "400px" });

  function draw(chunk) {
    const begin = Number(chunk.dataset.begin);
    if (chunk.dataset.mode === mode) return;
    if (!chunk.dataset.mode) fill(chunk, completion.pieces.slice(begin, begin + CHUNK).map((piece) => h("span", {}, piece)));
    chunk.dataset.mode = mode;
    for (let offset = 0; offset < chunk.children.length; offset++) chunk.children[offset].className = level(mode, completion, begin + offset);
  }
  for (let begin = 0; begin < completion.pieces.length; begin += CHUNK) {
    const chunk = h("span", { class: "chunk", "data-begin": begin });
    chunks.push(chunk);
    // The text stands there from the start, so that the browser finds it and the height is right.
    chunk.append(completion.pieces.slice(begin, begin + CHUNK).join(""));
    node.append(chunk);
    observer.observe(chunk);
  }
  const tell = (event) => {
    const chunk = event.target.parentElement;
    if (!chunk?.dataset?.begin) return hideTip();
    const index = Number(chunk.dataset.begin) + [...chunk.children].indexOf(event.target);
    showTip(event.clientX, event.clientY, h("strong", { class: "mono" }, JSON.stringify(completion.pieces[index])),
      row("token", `${index + 1}, id ${completion.token_ids[index]}`), row("probability", completion.logprobs[index] === undefined ? "–" : `${(100 * Math.exp(completion.logprobs[index])).toFixed(1)} %`),
      row("log-probability", number(completion.logprobs[index])), completion.advantages && row("advantage", signed(completion.advantages[index], 3)),
      completion.delta && row(`${part} minus ${branch}`, signed(completion.delta[index], 3)),
      Object.entries(completion.by ?? {}).map(([name, values]) => row(`${name} minus ${branch}`, signed(values[index], 3))));
  };
  node.addEventListener("mousemove", tell);
  node.addEventListener("mouseleave", hideTip);
  return {
    node,
    colour(next) {
      mode = next;
      const screen = innerHeight + 400;
      for (const chunk of chunks) {
        const { top, bottom } = chunk.getBoundingClientRect();
        if (chunk.dataset.mode && bottom > -400 && top < screen) draw(chunk);
        else { observer.unobserve(chunk); observer.observe(chunk); }
      }
    },
  };
}

const row = (name, value) => h("div", { class: "tip-row" }, name, h("b", {}, value));

// The class of a token's colour: its sign, and one of a few strengths.
function level(mode, completion, index) {
  if (mode === "none") return "";
  const values = { logprob: completion.logprobs, advantage: completion.advantages, delta: completion.delta }[mode] ?? completion.by?.[mode.replace("by ", "")];
  const value = values?.[index];
  if (value === undefined || value === null) return "";
  const strength = Math.round(Math.min(1, Math.abs(value) / (FULL[mode] ?? FULL.delta)) * LEVELS);
  return strength ? `t ${mode === "logprob" ? "u" : value > 0 ? "p" : "n"}${strength}` : "";
}
