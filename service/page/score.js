// What any adapter of the service finds of completions that a step has recorded, token by token.

import { mediaUrl, modelNames, post } from "./api.js";
import { fill, h, select } from "./dom.js";

const NO_ENGINE = "Other adapters can be asked where there is an engine and not only files: on the page of coevo serve, or of coevo run while it goes on.";
const NO_MESSAGES = "An older trainer recorded this prompt, without what other adapters would be asked.";

// A choice of adapters; `onscored(names)` when every completion has what they find, as `by[name]`, minus the student.
export async function scorer(data, branch, { signal, facts, colours }, onscored) {
  if (facts.is_read_only) return h("p", { class: "note" }, NO_ENGINE);
  if (!data.messages.length) return h("p", { class: "note" }, NO_MESSAGES);
  const names = await modelNames(signal);
  const teachers = Object.keys(colours).filter((name) => name !== branch && names.includes(name) && name !== "base" && name !== "merged");
  const told = h("span", { class: "note", role: "status" });
  const options = [["", "choose"], ...(teachers.length > 1 ? [["*", "every other branch"]] : []), ...names.map((name) => [name, name])];
  return h("div", { class: "bar" }, select("Score by", options, "", async (chosen) => {
    if (!chosen) return;
    const adapters = chosen === "*" ? teachers : [chosen];
    const unknown = adapters.filter((name) => !data.completions.some((completion) => completion.by?.[name]));
    fill(told, "scoring");
    try {
      if (unknown.length) await score(data, unknown, signal);
      fill(told);
      onscored(adapters);
    } catch (error) {
      fill(told, error.message);
    }
  }), told);
}

async function score(data, adapters, signal) {
  const kinds = await Promise.all(data.media.map(async (id) => (await mediaUrl(id, signal)).type.split("/")[0]));
  const [images, videos] = ["image", "video"].map((kind) => data.media.filter((_, index) => kinds[index] === kind));
  const scored = data.completions.filter((completion) => completion.token_ids.length);
  const sequences = scored.map((completion) => ({ prompt: { messages: data.messages }, completion: completion.token_ids, images, videos }));
  const words = new URLSearchParams(adapters.map((name) => ["adapter", name]));
  const answer = await post(`/logprobs?${words}`, { sequences }, signal);
  answer.adapters.forEach(({ sequences: rows }, number) => rows.forEach(({ logprobs }, index) => {
    // The student as it was when it answered: later revisions would say what was learnt, not what was to learn.
    const difference = logprobs.map((value, place) => value - scored[index].logprobs[place]);
    scored[index].by = { ...scored[index].by, [adapters[number]]: difference };
  }));
}
