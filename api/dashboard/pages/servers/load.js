/** The present load of servers and models: state, columns, and the events that update them. */

import { brief, elapsed, number } from "../../core/format.js";
import { address } from "../../core/route.js";
import { html } from "../../core/view.js";
import { State } from "../../ui/state.js";

/** The state of a server, by the reason why lines wait for it. */
const CAUSES = {
  server_unreachable: ["failed", "unreachable"],
  server_refuses: ["failed", "refuses calls"],
  server_fails: ["failed", "fails"],
  server_silent: ["failed", "silent"],
  access: ["failed", "lacks a key"],
  schedule: ["waiting", "off by schedule"],
  drained: ["waiting", "drained"],
  headroom: ["waiting", "busy with others"],
  tokens_per_minute: ["waiting", "tokens used up"],
  delivery: ["waiting", "waits for the log"],
};

/** Whether it gets calls: a tone and a word. */
export function stateOf({ object, removed, fault, settings, used_by: others, load }) {
  if (removed) return { tone: "cancelled", word: "removed" };
  if (fault) return { tone: "failed", word: "contradictory" };
  if (settings.drain) return { tone: "waiting", word: "drained" };
  if (settings.paused) return { tone: "waiting", word: "paused" };
  if (!others.length) return object === "server" ? { tone: "cancelled", word: "unused" } : { tone: "failed", word: "no server" };
  const [tone, word] = CAUSES[load?.cause?.reason] ?? [];
  // Calls that have not timed out may still be answered.
  if (word) return { tone: word === "silent" && load.breaker === "closed" ? "part" : tone, word };
  if (load?.breaker === "probing" || load?.breaker === "open") return { tone: "part", word: "being probed" };
  if (load?.in_flight) return { tone: "running", word: "at work" };
  if (object === "model" && load?.lines_waiting) return { tone: "waiting", word: "waiting" };
  return load ? { tone: "done", word: "ready" } : { tone: "waiting", word: "not reported" };
}

/** The rows of servers or models with the load of an event; one that it does not name has none. */
export const renewed = (rows, loads) => rows.map((row) => ({ ...row, load: loads[row.id] ? { ...row.load, ...loads[row.id] } : null }));

/** `412 ms`, or a dash. */
export const seconds = (value) => (value === null || value === undefined ? "–" : elapsed(value));
const amount = (value, write = number) => (value === null || value === undefined ? "–" : write(value));
const oneDigit = (value) => (value < 10 ? value.toFixed(1) : number(Math.round(value)));

/** Calls in flight as a part of the limit. */
export function InFlight({ name, load }) {
  if (!load) return html`<span class="muted">–</span>`;
  const { in_flight: calls, limit } = load;
  const width = `${limit ? Math.min(100, (100 * calls) / limit) : 0}%`;
  const text = `${number(calls)} of ${number(limit)}`;
  return html`
    <span class="load">
      <span class="bar" role="meter" aria-label=${`Calls in flight at ${name}`} aria-valuemin="0" aria-valuemax=${Math.max(limit, calls, 1)}
        aria-valuenow=${calls} aria-valuetext=${text}><span class="running" style=${{ width }} /></span>
      <span class="amount">${number(calls)} / ${number(limit)}</span>
    </span>
  `;
}

/** A server on a phone. */
export const ServerCard = ({ entry }) => html`
  <div class="card-line">${nameColumn().cell(entry)}<${State} tone=${stateOf(entry).tone}>${stateOf(entry).word}<//></div>
  <${InFlight} name=${entry.id} load=${entry.load} />
  <div class="small muted clip">${entry.load ? `${number(entry.load.lines_waiting)} waiting, ${number(entry.load.refused)} refused, ${oneDigit(entry.load.lines_per_second)} lines/s` : "No process reports on it."}</div>
`;
export const CARD = 92;

/** The name with a link to its panel. */
export const nameColumn = (title) => ({
  id: "name", title, width: "minmax(150px, 1.4fr)", sort: ({ id }) => id,
  cell: ({ id, object }) => html`<a class="row-link clip" href=${address("/servers", { kind: object, name: id })}>${id}</a>`,
});

export const STATE = {
  id: "state", title: "State", width: "minmax(156px, 1fr)",
  cell: (entry) => html`<span title=${entry.fault ?? entry.load?.cause?.message}><${State} tone=${stateOf(entry).tone}>${stateOf(entry).word}<//></span>`,
};

/** A column with a number of the load. */
const figure = (id, title, width, value, write, hint) => ({
  id, title, width, isNumber: true, sort: ({ load }) => (load && value(load)) ?? -1,
  cell: ({ load }) => html`<span title=${hint}>${amount(load && value(load), write)}</span>`,
});

export const IN_FLIGHT = { id: "in_flight", title: "Calls / limit", width: "minmax(130px, 1.2fr)", sort: ({ load }) => load?.in_flight ?? -1, cell: ({ id, load }) => html`<${InFlight} name=${id} load=${load} />` };
export const WAITING = figure("waiting", "Waiting here", "100px", (load) => load.lines_waiting, number, "Lines that wait for a call");
export const QUEUED = { ...figure("queued", "In its queue", "104px", (load) => load.queued, number, "Requests of all clients that wait in the server, if its metrics say so"), yields: 3 };
export const REFUSED = { ...figure("refused", "Refused", "76px", (load) => load.refused, number, "Calls that it refused because it was full, in the last minute"), yields: 4 };
export const LINES = figure("lines", "Lines/s", "72px", (load) => load.lines_per_second, oneDigit);
export const TOKENS = { ...figure("tokens", "Tokens/s", "82px", (load) => load.tokens_per_second, brief), yields: 2 };
export const TIMES = {
  id: "times", title: "p50 / p99", width: "152px", isNumber: true, yields: 5, sort: ({ load }) => load?.duration_seconds.p50 ?? -1,
  cell: ({ load }) => html`<span title="Time of the calls of the last minute">${seconds(load?.duration_seconds.p50)} / ${seconds(load?.duration_seconds.p99)}</span>`,
};
export const FIRST_BYTE = { ...figure("first_byte", "First byte", "96px", (load) => load.first_byte_seconds.p50, seconds, "Half of the replies of the last minute began within this time"), yields: 1 };
