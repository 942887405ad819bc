// The service's public routes, asked with the key of this tab. Events are read by fetch, as EventSource sends no key.

const KEY = "coevo-key";
const AGAIN_MS = 2000;

let asking = null; // one dialog, however many requests are refused at once

export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

function headers(more = {}) {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...more, authorization: `Bearer ${key}` } : more;
}

async function askKey() {
  const dialog = document.getElementById("key");
  const field = document.getElementById("key-field");
  document.getElementById("key-wrong").hidden = !sessionStorage.getItem(KEY);
  field.value = "";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  sessionStorage.setItem(KEY, field.value);
}

function away(isAway) {
  const banner = document.getElementById("banner");
  banner.hidden = !isAway;
  banner.textContent = isAway ? "The service does not answer. This page goes on when it is back." : "";
}

const sleep = (ms, signal) => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, ms);
  signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
});

// The answer to a request; while the service is away it is asked again, a key is asked for when it is refused.
export async function request(path, { signal, retry = true, ...options } = {}) {
  for (;;) {
    let answer;
    try {
      answer = await fetch(path, { ...options, signal, headers: headers(options.headers) });
    } catch (error) {
      if (signal?.aborted || !retry) throw error;
      away(true);
      await sleep(AGAIN_MS, signal);
      continue;
    }
    if (answer.status === 401) {
      asking ??= askKey().finally(() => { asking = null; });
      await asking;
      continue;
    }
    if (retry && (answer.status === 502 || answer.status === 503 || answer.status === 429)) {
      away(true);
      await sleep(AGAIN_MS, signal);
      continue;
    }
    away(false);
    if (answer.ok) return answer;
    const problem = await answer.json().catch(() => ({}));
    throw new Problem(answer.status, problem.detail ?? problem.error?.message ?? `the service answered ${answer.status}`);
  }
}

export async function get(path, query = {}, signal) {
  const words = new URLSearchParams();
  for (const [name, value] of Object.entries(query))
    for (const item of [value].flat()) if (item !== undefined && item !== null) words.append(name, item);
  return (await request(words.size ? `${path}?${words}` : path, { signal })).json();
}

export async function post(path, body, signal) {
  const headers = { "content-type": "application/json" };
  return (await request(path, { method: "POST", signal, retry: false, headers, body: JSON.stringify(body) })).json();
}

// Names that answer and score: heads and extras, and every other revision with weights of its own.
export async function modelNames(signal) {
  const [{ data }, { branches }] = await Promise.all([get("/v1/models", {}, signal), get("/adapters", {}, signal)]);
  return [...data.map((model) => model.id), ...Object.entries(branches).flatMap(([name, branch]) =>
    branch.revisions.filter((revision) => revision !== branch.head && revision > 0).map((revision) => `${name}@${revision}`))];
}

// Saves a file of the service under a name. A link could not: it sends no key.
export async function save(path, name) {
  const url = URL.createObjectURL(await (await request(path)).blob());
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  URL.revokeObjectURL(url);
}

// Every page of a list, by `next`.
export async function getAll(path, query, member, signal) {
  const items = [];
  for (let after; ; ) {
    const page = await get(path, { ...query, after }, signal);
    items.push(...page[member]);
    if (page.next === null) return items;
    after = page.next;
  }
}

// The blocks of a stream of server-sent events, as {id, data}.
export async function* blocks(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const pieces = (rest + value).split(/\r?\n\r?\n/);
    rest = pieces.pop();
    for (const piece of pieces) {
      const block = {};
      for (const line of piece.split(/\r?\n/)) {
        const at = line.indexOf(":");
        if (at > 0) block[line.slice(0, at)] = line.slice(at + 1).trimStart();
      }
      if (block.data !== undefined) yield block;
    }
  }
}

// Events after a number, for ever: when the service was away, from the last one on that was seen.
export async function* follow(run, after, signal, onstate) {
  let last = after;
  while (!signal.aborted) {
    try {
      const answer = await request(`/runs/${run}/events?after=${after}`, { signal, headers: { "last-event-id": String(last) } });
      onstate(true);
      for await (const block of blocks(answer)) {
        last = Number(block.id);
        yield JSON.parse(block.data);
      }
    } catch (error) {
      if (signal.aborted) return;
    }
    onstate(false);
    await sleep(AGAIN_MS, signal).catch(() => {});
  }
}

const kept = new Map(); // of media that were shown: a group's pictures are looked at again and again

export async function mediaUrl(id, signal) {
  if (!kept.has(id)) {
    const data = await (await request(`/media/${id}`, { signal })).arrayBuffer();
    const type = mediaType(new Uint8Array(data));
    kept.set(id, { url: URL.createObjectURL(new Blob([data], { type })), type });
    for (const [name, { url }] of kept) {
      if (kept.size <= 200) break;
      URL.revokeObjectURL(url);
      kept.delete(name);
    }
  }
  return kept.get(id);
}

// By its first bytes; what is none of these is shown as no picture.
function mediaType(data) {
  const text = String.fromCharCode(...data.slice(0, 12));
  if (text.startsWith("\x89PNG")) return "image/png";
  if (text.startsWith("\xff\xd8")) return "image/jpeg";
  if (text.startsWith("GIF8")) return "image/gif";
  if (text.startsWith("RIFF") && text.endsWith("WEBP")) return "image/webp";
  if (text.slice(4, 8) === "ftyp") return "video/mp4";
  return data[0] === 0x1a && data[1] === 0x45 ? "video/webm" : "application/octet-stream";
}
