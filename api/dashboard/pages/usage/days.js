/** Sums of days and groups as a stacked chart. */

import { count, DAY, day } from "../../core/format.js";

/** Groups with a colour of their own; the others share one. */
const GROUPS_MAX = 5;

/** The measures of a sum: their words, their unit, and their value. */
export const MEASURES = {
  tokens: ["tokens", "tokens", (sum) => sum.input_tokens + sum.output_tokens],
  lines: ["lines", "lines", (sum) => sum.lines],
  cost: ["cost", "cost", (sum) => Number(sum.cost.total)],
};

/**
 * The series of a chart, the largest group at the bottom.
 * @param {object[]} sums Of the API, by day, and by the group `by`, if it is not null.
 * @param {string|null} by model or project.
 * @param {string} measure A key of `MEASURES`.
 * @param {number} start Midnight of the first day, Unix seconds.
 * @returns {{times: number[], series: object[]}} For each day until today.
 */
export function stackOf(sums, by, measure, start) {
  const [, , valueOf] = MEASURES[measure];
  const times = [];
  for (let at = start; at <= Date.now() / 1000; at += DAY) times.push(at);
  const places = new Map(times.map((at, place) => [day(at), place]));
  const groups = new Map();
  for (const sum of sums.filter((one) => places.has(one.day))) {
    const name = by === null ? "All" : (sum[by] ?? "–");
    const values = groups.get(name) ?? times.map(() => 0);
    values[places.get(sum.day)] += valueOf(sum);
    groups.set(name, values);
  }
  const total = (values) => values.reduce((one, other) => one + other, 0);
  const sorted = [...groups].sort(([, one], [, other]) => total(other) - total(one));
  const series = sorted.slice(0, GROUPS_MAX).map(([title, values], place) => ({ title, colour: `series-${place + 1}`, values }));
  const others = sorted.slice(GROUPS_MAX).map(([, values]) => values);
  if (others.length)
    series.push({ title: count(others.length, "other"), colour: "edge", values: times.map((_, place) => total(others.map((values) => values[place]))) });
  return { times, series };
}
