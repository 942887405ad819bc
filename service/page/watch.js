// A screen that goes on with its run: drawn again when the run tells something, at most once a second.

import { follow, get } from "./api.js";

const LEAST_MS = 1000;
const BUSY = ".chart:focus, .chart:hover, .vt:hover, .vt-scroll:focus, select:focus"; // what somebody reads just now stays

export async function watch({ signal, live }, run, draw) {
  const info = await get(`/runs/${run}`, {}, signal).catch(() => null);
  if (!info) return;
  live(info.state === "finished" ? "finished" : "live");
  if (info.state === "finished") return;
  let timer = null;
  for await (const event of follow(run, info.num_events, signal, (isThere) => !signal.aborted && live(isThere ? "live" : "away"))) {
    if (event.kind === "run") live(event.state === "finished" ? "finished" : "live");
    const later = () => {
      timer = null;
      if (signal.aborted) return;
      if (document.querySelector(BUSY)) timer = setTimeout(later, LEAST_MS);
      else draw().catch(() => {});
    };
    timer ??= setTimeout(later, LEAST_MS);
  }
}
