/** Parts of a batch that several pages show alike. */

import { call } from "../core/client.js";
import { age, count, distance, duration, moment, number, short } from "../core/format.js";
import { batchPath } from "../core/route.js";
import { html } from "../core/view.js";
import { Copy } from "../ui/basics.js";
import { confirm, toast } from "../ui/overlay.js";
import { Progress, State } from "../ui/state.js";

const ENDS = ["completed", "failed", "expired", "cancelled"];
/** Reasons to wait in normal operation, as in schemas/resources/waiting.py. */
const USUAL = ["in_flight", "queued", "validation", "batches_at_work", "import", "open"];
/** Reasons that an operator has set. */
const HELD = ["schedule", "drained", "paused", "tokens_per_minute"];
const MINUTE = 60;

export const isOver = (batch) => ENDS.includes(batch.status);

/** Why lines of a batch wait: stalls first. */
export const waits = (batch) => (isOver(batch) ? [] : batch.tidemill.waiting);
export const isUsual = ({ reason }) => USUAL.includes(reason);
/** Why lines of a batch wait longer than usual. */
export const stalls = (batch) => waits(batch).filter((wait) => !isUsual(wait));
export const isHeld = ({ reason }) => HELD.includes(reason);
/** Whether lines of a batch wait for another reason than a limit that an operator has set. */
export const isStalled = (batch) => stalls(batch).some((wait) => !isHeld(wait));

/**
 * The state of a batch: a tone and a word. One that runs and has nothing done yet is queued; one that is completed may
 * have failed lines, or no others.
 */
export function stateOf(batch) {
  const { completed, failed } = batch.request_counts;
  switch (batch.status) {
    case "validating":
      return { tone: "waiting", word: "validating" };
    case "in_progress":
      if (stalls(batch).length) return { tone: "waiting", word: isStalled(batch) ? "stalled" : "held by settings" };
      return completed + failed ? { tone: "running", word: "in progress" } : { tone: "waiting", word: "queued" };
    case "finalizing":
      return { tone: "running", word: "finalizing" };
    case "completed":
      if (!failed) return { tone: "done", word: "completed" };
      return completed ? { tone: "part", word: "some lines failed" } : { tone: "failed", word: "all lines failed" };
    case "failed":
      return { tone: "failed", word: "rejected" };
    case "expired":
      return { tone: "failed", word: "expired" };
    default:
      return { tone: "cancelled", word: batch.status };
  }
}

export function BatchState({ batch }) {
  const { tone, word } = stateOf(batch);
  return html`<${State} tone=${tone}>${word}<//>`;
}

/** The name of a batch, or a short id. */
export const called = (batch) => batch.tidemill.name ?? `Batch ${short(batch.id)}`;

export const modelOf = ({ model, tidemill: { models } }) => (models?.length ? count(models.length, "model") : (model ?? "–"));

export const BatchProgress = ({ batch, isBig }) => {
  const { total, completed, failed } = batch.request_counts;
  return html`<${Progress} label="Lines of the batch" done=${completed} failed=${failed} total=${total} isBig=${isBig} />`;
};

/** How far a batch is, in lines. */
export function counts({ request_counts: { total, completed, failed } }) {
  return html`${number(completed + failed)} / ${number(total)}${failed ? html` · <span class="bad">${number(failed)} failed</span>` : ""}`;
}

/** The files of a batch with answers, in the order of its lines: a name for a menu, the id, and a name to save it under. */
export function outputsOf({ id, output_file_id: output, tidemill: { output_file_ids: parts } }) {
  if (!parts.length) return output ? [["Output", output, `${id}_output.jsonl`]] : [];
  return parts.map((file, place) => [`Output ${place + 1}`, file, `${id}_output-${String(place + 1).padStart(5, "0")}.jsonl`]);
}

/** The Unix second at which a batch ended. */
export const endedAt = (batch) => batch.completed_at ?? batch.failed_at ?? batch.expired_at ?? batch.cancelled_at;

/** When it will be done, how long it took, or why it waits. */
export function ending(batch) {
  if (isOver(batch)) return `took ${duration(endedAt(batch) - batch.created_at)}`;
  const band = bandOf(batch);
  const held = stalls(batch);
  if (!held.length && band) return `in ${band}`;
  const reasons = new Set((held.length ? held : waits(batch).slice(0, 1)).map(({ reason }) => reason.replaceAll("_", " ")));
  return reasons.size ? `waits: ${[...reasons].join(", ")}` : "not known yet";
}

/** The expected time to the end: `4 min`, or `4 min to 6 min`; null if it is not known. */
export function bandOf({ tidemill: { progress } }) {
  if (!progress?.done_latest_at) return null;
  const now = Date.now() / 1000;
  const [early, late] = [progress.done_earliest_at, progress.done_latest_at].map((at) => {
    const left = at - now;
    return duration(left > 10 * MINUTE ? Math.round(left / MINUTE) * MINUTE : left);
  });
  return early === late ? early : `${early} to ${late}`;
}

/** The time between the expected end and the deadline: amber under a quarter of the window, red below zero. */
export function slackOf(batch) {
  if (isOver(batch)) return { tone: "", text: "–" };
  const over = Date.now() / 1000 - batch.expires_at;
  const seconds = batch.tidemill.progress?.slack_seconds ?? (over > 0 ? -over : null);
  if (seconds === null) return { tone: "", text: distance(batch.expires_at).replace(/(\d+ \S+) \d+ s$/, "$1") };
  if (seconds < 0) return { tone: "bad", text: `${duration(-seconds)} late` };
  const tone = seconds < (batch.expires_at - batch.created_at) / 4 ? "part" : "";
  return { tone, text: `${duration(seconds)} to spare` };
}

/** Whether a batch is in trouble of each kind, as the filter of the API has it (schemas/resources/trouble.py). */
export const TROUBLES = {
  stalled: (batch) => stalls(batch).length > 0,
  late: (batch) => slackOf(batch).tone === "bad",
  failures: ({ status, request_counts: { failed }, tidemill: { fault } }) => failed > 0 || Boolean(fault) || ["failed", "expired"].includes(status),
};

export const Slack = ({ batch }) => {
  const { tone, text } = slackOf(batch);
  return html`<span class=${tone === "part" ? "part-tone" : tone} title=${`Deadline ${moment(batch.expires_at)}`}>${text}</span>`;
};

/** A batch in a table: its name as the link of the row, over its short id. */
export const BatchName = ({ batch }) => html`
  <span class="batch-name">
    <a class="row-link clip" href=${`#${batchPath(batch.id)}`} title=${called(batch)}>${called(batch)}</a>
    ${batch.tidemill.rerun_of && html`<span class="small muted gives-way" title=${`Runs lines of ${batch.tidemill.rerun_of} again`}>rerun</span>`}
    <${Copy} text=${batch.id} shown=${short(batch.id)} label="copy the id" />
  </span>
`;

/** A batch on a phone: name, state, bar, end. */
export const BatchCard = ({ batch }) => html`
  <div class="card-line"><${BatchName} batch=${batch} /><${BatchState} batch=${batch} /></div>
  <${BatchProgress} batch=${batch} />
  <div class="card-line small muted"><span>${counts(batch)}</span><span class="clip">${ending(batch)}</span></div>
`;

/** A sentence about why lines wait. */
export const waitText = ({ lines, message, since }) =>
  `${message} ${lines ? count(lines, "line waits", "lines wait") : "It waits"} since ${moment(since)}, ${age(Date.now() / 1000 - since)}.`;

/** Ask, then cancel batches. @param {object[]} batches */
export function cancel(batches, after) {
  const lines = batches.reduce((sum, { request_counts: { total, completed, failed } }) => sum + total - completed - failed, 0);
  // Before validation the number of lines is unknown.
  const what = batches.every(({ request_counts: { total } }) => total) ? count(lines, "line") : count(batches.length, "batch", "batches");
  confirm({
    title: batches.length === 1 ? `Cancel ${called(batches[0])}?` : `Cancel ${count(batches.length, "batch", "batches")}?`,
    text: "What is done by now is kept, and the other lines do not run.",
    action: `Cancel ${what}`,
    work: async () => {
      await Promise.all(batches.map(({ id }) => call("POST", `${batchPath(id)}/cancel`)));
      toast(`Cancelling ${what}.`);
      after?.();
    },
  });
}

