// One question to two models: answers stream side by side, token by token, with what else each might have said.

import { Problem, blocks, modelNames, request } from "./api.js";
import { empty, fill, h, hideTip, select, showTip } from "./dom.js";

const TOP = 5; // alternatives of a token; the service's engine may take fewer
const BIG = 8 * 2 ** 20; // bytes of a picture or a clip that are put into a request

function readFile(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}

export async function chat({ signal, facts, query }) {
  if (facts.is_read_only) return h("div", {}, h("h1", {}, "Compare and chat"), empty("Nobody answers here: these are files alone. Start their models with coevo serve, and open its page."));
  const names = await modelNames(signal);
  const chosen = [query.get("a") ?? "base", query.get("b") ?? names.findLast((name) => !name.includes("@"))];
  const columns = chosen.map((model, index) => {
    const body = h("div", { class: "answer", "aria-live": "polite" }, empty("No answer yet."));
    const foot = h("div", { class: "note" });
    const picker = select(index ? "Right" : "Left", names.map((name) => [name, name]), model, (name) => { chosen[index] = name; });
    return { body, foot, tokens: [], node: h("article", { class: "card" }, h("div", { class: "card-head" }, picker), body, foot) };
  });
  const question = h("textarea", { rows: 3, placeholder: "37+2*4?", "aria-label": "Question" });
  const file = h("input", { type: "file", accept: "image/*,video/*", "aria-label": "A picture or a clip" });
  const temperature = h("input", { type: "number", min: 0, max: 2, step: 0.1, value: 0, "aria-label": "Temperature" });
  const most = h("input", { type: "number", min: 1, value: 128, "aria-label": "Most tokens" });
  const wrong = h("p", { class: "wrong", role: "alert", hidden: true });
  const ask = h("button", { class: "primary" }, "Ask both");

  async function content() {
    if (!file.files[0]) return question.value;
    if (file.files[0].size > BIG) throw new Problem(413, "That file is larger than 8 MiB: take a smaller one.");
    const url = await readFile(file.files[0]);
    const kind = file.files[0].type.startsWith("video/") ? "video_url" : "image_url";
    return [{ type: kind, [kind]: { url } }, { type: "text", text: question.value }];
  }

  async function answer(column, model, message) {
    column.tokens = [];
    const began = performance.now();
    const stream = await request("/v1/chat/completions", { method: "POST", signal, retry: false, headers: { "content-type": "application/json" },
      body: JSON.stringify({ model, messages: [{ role: "user", content: message }], stream: true, logprobs: true, top_logprobs: TOP, temperature: Number(temperature.value), max_tokens: Number(most.value) }) });
    for await (const { data } of blocks(stream)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Problem(500, chunk.error.message);
      const part = chunk.choices?.[0];
      const told = part?.logprobs?.content ?? [];
      if (told.length) column.tokens.push(...told);
      else if (part?.delta?.content) column.tokens.push({ token: part.delta.content, logprob: null, top_logprobs: [] });
      draw();
    }
    column.foot.textContent = `${column.tokens.length} tokens in ${((performance.now() - began) / 1000).toFixed(1)} s`;
  }

  // What differs is marked from the first token on at which the two answers part.
  function draw() {
    const [a, b] = columns.map((column) => column.tokens.map((token) => token.token));
    let parted = 0;
    while (parted < Math.min(a.length, b.length) && a[parted] === b[parted]) parted++;
    for (const column of columns) fill(column.body, column.tokens.map((token, index) =>
      h("span", { class: index >= parted && a.length && b.length ? "differs" : "", "data-index": index }, token.token)));
  }
  for (const column of columns) {
    column.body.addEventListener("mousemove", (event) => {
      const token = column.tokens[event.target.dataset?.index];
      if (!token) return hideTip();
      showTip(event.clientX, event.clientY, h("strong", { class: "mono" }, JSON.stringify(token.token)), token.top_logprobs.map((other) =>
        h("div", { class: other.token === token.token ? "tip-row picked" : "tip-row" }, h("span", { class: "mono" }, JSON.stringify(other.token)), h("b", {}, `${(100 * Math.exp(other.logprob)).toFixed(1)} %`))));
    });
    column.body.addEventListener("mouseleave", hideTip);
  }

  const form = h("form", { class: "card ask" }, question, h("div", { class: "bar" }, h("label", { class: "field" }, h("span", {}, "Picture or clip"), file),
    h("label", { class: "field" }, h("span", {}, "Temperature"), temperature), h("label", { class: "field" }, h("span", {}, "Most tokens"), most), ask), wrong);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    wrong.hidden = true;
    ask.disabled = true;
    try {
      const message = await content();
      await Promise.all(columns.map((column, index) => answer(column, chosen[index], message)));
    } catch (error) {
      wrong.textContent = error.message;
      wrong.hidden = false;
    } finally {
      ask.disabled = false;
    }
  });
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  return h("div", {}, h("h1", {}, "Compare and chat"), form, h("div", { class: "grid two" }, columns.map((column) => column.node)));
}
