/** What several pages show of a batch in the same way. */

import { h } from "./dom.js";
import { distance, duration, moment, number } from "./format.js";

const SHORT_CHARS = 8;
export const ENDS = ["completed", "failed", "expired", "cancelled"];
export const isOver = (batch) => ENDS.includes(batch.status);

/**
 * The state in words. One that runs and has nothing done yet is waiting for its turn; one that is completed may have
 * failed lines, or no others.
 */
export function state(batch) {
  const { completed, failed } = batch.request_counts;
  if (batch.status === "in_progress" && completed + failed === 0) return "queued";
  if (batch.status === "completed" && failed) return completed ? "some lines failed" : "all lines failed";
  return batch.status.replace("_", " ");
}

export const pill = (batch) => h("span", { class: "pill", "data-state": state(batch) }, state(batch));

/** The lines that are done and those that failed, of all. */
export function bar(batch) {
  const { total, completed, failed } = batch.request_counts;
  const part = (kind, count) => {
    const element = h("span", { class: kind });
    // Set like this, since the page's policy lets no style stand in an attribute.
    element.style.width = total ? `${(100 * count) / total}%` : "0";
    return element;
  };
  return h(
    "div",
    {
      class: "bar",
      role: "progressbar",
      "aria-label": "Lines that are done",
      "aria-valuemin": 0,
      "aria-valuemax": total,
      "aria-valuenow": completed + failed,
      "aria-valuetext": `${number(completed)} completed, ${number(failed)} failed, of ${number(total)}`,
    },
    part("completed", completed),
    part("failed", failed),
  );
}

/** When it will be done, or how long it took. */
export function end(batch) {
  if (isOver(batch)) {
    const at = batch.completed_at ?? batch.failed_at ?? batch.expired_at ?? batch.cancelled_at;
    return `took ${duration(at - batch.created_at)}`;
  }
  const progress = batch.tidemill.progress;
  if (!progress?.done_latest_at) {
    const reasons = batch.tidemill.waiting.map(({ reason }) => reason.replaceAll("_", " "));
    return reasons.length ? `waits: ${[...new Set(reasons)].join(", ")}` : "not known yet";
  }
  const now = Date.now() / 1000;
  const [early, late] = [progress.done_earliest_at, progress.done_latest_at].map((at) => duration(at - now));
  return early === late ? `in ${early}` : `in ${early} to ${late}`;
}

/** What lines wait for, in a sentence. */
export function held({ lines, message, since }) {
  return `${lines ? `${number(lines)} ${lines === 1 ? "line waits" : "lines wait"}: ` : ""}${message} Since ${moment(since)}.`;
}

/** How much time is left beyond the expected end, or until the deadline where that is not known. */
export function slack(batch) {
  const seconds = batch.tidemill.progress?.slack_seconds;
  if (seconds === null || seconds === undefined) return h("span", {}, `deadline ${distance(batch.expires_at)}`);
  return seconds < 0
    ? h("strong", { class: "bad" }, `at risk: ${duration(-seconds)} late`)
    : h("span", {}, `${duration(seconds)} to spare`);
}

/** The name of a batch, where it has one. */
export const name = (batch) =>
  batch.tidemill.name ?? batch.metadata?.name ?? batch.metadata?.description ?? batch.tidemill.stream ?? null;

/** The model of a batch, or how many it has; null while none is known. */
export const model = ({ model: one, tidemill: { models } }) => (models?.length ? `${models.length} models` : one);

/** The end of an id, by which people tell one from another. */
export const short = (id) => `…${id.slice(-SHORT_CHARS)}`;

/** A batch as a title says it. */
export const called = (batch) => name(batch) ?? `Batch ${short(batch.id)}`;

/** How far it is, or how it ended. */
export function progress(batch) {
  const { total, completed, failed } = batch.request_counts;
  return isOver(batch) || !total ? state(batch) : `${Math.floor((100 * (completed + failed)) / total)} %`;
}
