/** Lines that ended over time, as charts take them: the API leaves empty intervals out. */

import { call } from "../core/client.js";
import { useLive } from "../core/live.js";
import { batchPath } from "../core/route.js";
import { useMemo } from "../core/view.js";
import { isOver } from "./shown.js";

const POINTS_MAX = 400;

/** Every interval from the first to the last, with zeros where no line ended. */
function whole({ interval_seconds: step, data, start = data[0].at, end = data.at(-1).at + step }, hasEnded) {
  // The present interval is not over, so its rate would be too low.
  const last = (hasEnded ? end : Math.min(end, Date.now() / 1000)) - step;
  // Skip whole steps, to keep the API's times.
  const first = start + step * Math.max(0, Math.ceil((last - start) / step) - POINTS_MAX);
  const known = new Map(data.map((point) => [point.at, point]));
  const times = [];
  for (let at = first; at <= last; at += step) times.push(at);
  return { times, values: (name, none = 0) => times.map((at) => known.get(at)?.[name] ?? none) };
}

/**
 * A series of the API for a chart of throughput.
 * @param {{interval_seconds: number, data: object[], start?: number, end?: number}|undefined} found
 * @param {boolean} [hasEnded] Whether nothing more comes.
 * @returns {{times: number[], rates: number[], tokens: number[], stack: object[]}} In lines, or tokens, a second.
 */
export function seriesOf(found, hasEnded = false) {
  if (!found?.data.length) return { times: [], rates: [], tokens: [], stack: [] };
  const { times, values } = whole(found, hasEnded);
  const rate = (name) => values(name).map((value) => value / found.interval_seconds);
  const sum = (one, other) => one.map((value, place) => value + other[place]);
  const [done, failed, retried] = [rate("completed"), rate("failed"), rate("retried")];
  const limits = values("limit", null);
  return {
    times,
    rates: sum(done, failed),
    tokens: sum(rate("input_tokens"), rate("output_tokens")),
    stack: [
      { title: "Completed", colour: "done", values: done },
      { title: "Failed", colour: "failed", values: failed },
      ...(retried.some(Boolean) ? [{ title: "Retried", colour: "part", values: retried }] : []),
      ...(limits.some(Boolean) ? [{ title: "Limit", colour: "muted", values: limits, isLine: true, isRight: true }] : []),
    ],
  };
}

/** The throughput of a batch over its whole life. */
export function useSeries(batch) {
  const { data } = useLive(`throughput ${batch.id} ${isOver(batch)}`, (stop) => call("GET", `${batchPath(batch.id)}/throughput`, { signal: stop }), {
    every: 5,
    isFinal: () => isOver(batch),
  });
  return useMemo(() => seriesOf(data, isOver(batch)), [data]);
}
