// A screen that goes on with its run: drawn again when the run tells something, at most once a second.

import { follow, get } from "./api.js";

const LEAST_MS = 1000;

export async function watch({ signal, live }, run, draw) {
  const info = await get(`/runs/${run}`, {}, signal).catch(() => null);
  if (!info) return;
  live(info.state === "finished" ? "finished" : "live");
  if (info.state === "finished") return;
  let timer = null;
  for await (const event of follow(run, info.num_events, signal, (isThere) => !signal.aborted && live(isThere ? "live" : "away"))) {
    if (event.kind === "run") live(event.state === "finished" ? "finished" : "live");
    timer ??= setTimeout(() => {
      timer = null;
      if (!signal.aborted) draw().catch(() => {});
    }, LEAST_MS);
  }
}
