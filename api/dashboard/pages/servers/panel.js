/** The panel of a server or a model: its settings, who changed them, and what an operator can do now. */

import { call } from "../../core/client.js";
import { moment, number } from "../../core/format.js";
import { RELOAD, useLive } from "../../core/live.js";
import { address } from "../../core/route.js";
import { html, useState } from "../../core/view.js";
import { Banner, Button, Copy, Facts, Json, Skeleton, When } from "../../ui/basics.js";
import { TextField } from "../../ui/form.js";
import { confirm, openDialog, Panel, toast } from "../../ui/overlay.js";
import { State } from "../../ui/state.js";
import { Table } from "../../ui/table.js";
import { InFlight, seconds } from "./load.js";
import { openTestCall } from "./test-call.js";

const IN_FLIGHT_MAX = 100_000;
const pathOf = ({ object, id }) => `/admin/${object}s/${id.split("/").map(encodeURIComponent).join("/")}`;

/** Change some settings; null sets the default. Warnings of the service are shown. */
async function change(entry, settings, done, reload) {
  const { warnings } = await call("PATCH", pathOf(entry), { body: { settings } });
  toast(warnings.length ? `${done} ${warnings.join(" ")}` : done, warnings.length ? "bad" : "good");
  reload();
}

function Limit({ entry, reload, close }) {
  const [text, setText] = useState(String(entry.settings.max_in_flight ?? ""));
  const value = Number(text);
  const isWrong = text !== "" && !(Number.isInteger(value) && value >= 1 && value <= IN_FLIGHT_MAX);
  async function save() {
    await change(entry, { max_in_flight: text === "" ? null : value }, `Changed the limit of ${entry.id}.`, reload);
    close();
  }
  return html`
    <${TextField} id="limit" label="Concurrent calls at most" type="number" min="1" value=${text} fault=${isWrong && `A whole number from 1 to ${IN_FLIGHT_MAX}.`}
      help="Of all processor processes together; empty for the default" onInput=${setText} />
    <div class="buttons end"><${Button} act=${close}>Cancel<//><${Button} kind="primary" disabled=${isWrong} act=${save}>Change the limit<//></div>
  `;
}

/** Stopping asks first, since batches wait then; resuming does not. */
function Stop({ entry, reload }) {
  const isServer = entry.object === "server";
  const field = isServer ? "drain" : "paused";
  if (entry.settings[field])
    return html`<${Button} kind="primary" act=${() => change(entry, { [field]: false }, `${entry.id} gets calls again.`, reload)}>Resume<//>`;
  const verb = isServer ? "Drain" : "Pause";
  const ask = () =>
    confirm({
      title: `${verb} ${entry.id}?`,
      text: isServer
        ? "It gets no new calls, and calls in flight finish. Models without another server wait."
        : "It gets no new calls, and calls in flight finish. Its batches wait, and end at their deadlines.",
      action: `${verb} ${entry.id}`,
      work: () => change(entry, { [field]: true }, `${entry.id} gets no new calls.`, reload),
    });
  return html`<${Button} kind="danger" act=${ask}>${verb}<//>`;
}

const Names = ({ entry }) =>
  entry.used_by.map((name, place) => html`${place > 0 && ", "}<a href=${address("/servers", { kind: entry.object === "server" ? "model" : "server", name })}>${name}</a>`);

const PARTS = [
  { id: "process", title: "Process", width: "minmax(110px, 1.6fr)", cell: ({ process, server }) => html`<code title=${`${process} ${server}`}>${server.split("@")[1] ?? process}</code>` },
  { id: "calls", title: "Calls / limit", width: "96px", isNumber: true, cell: ({ in_flight: calls, limit }) => `${number(calls)} / ${number(limit)}` },
  { id: "lines", title: "Lines/s", width: "64px", isNumber: true, cell: (part) => part.lines_per_second.toFixed(1) },
  { id: "refused", title: "Refused", width: "80px", isNumber: true, cell: ({ refused }) => number(refused) },
];
const BREAKERS = { closed: "closed", probing: "probing: a few calls go out", open: "open: no call for some seconds" };

const Why = ({ cause }) => html`<${Banner} tone=${cause.reason === "queued" ? "info" : "warn"}>${cause.message} Since ${moment(cause.since)}.<//>`;

/** The present load of a server, summed and by process. */
function Load({ entry }) {
  const live = useLive(`load ${entry.id}`, async (stop) => (await call("GET", pathOf(entry), { signal: stop })).load, {
    every: 5, wantsLoad: true, onChange: (type) => (type === "load" ? RELOAD : undefined),
  });
  const load = live.data;
  if (load === undefined) return html`<${Skeleton} rows=${4} height=${24} error=${live.error} />`;
  if (load === null) return html`<p class="muted">No processors process has reported on it in the last half minute.</p>`;
  const { duration_seconds: took, first_byte_seconds: first, cause } = load;
  const times = ({ p50, p99 }) => (p50 === null ? "–" : `${seconds(p50)}, 99 of 100 in ${seconds(p99)}`);
  return html`
    ${cause && html`<${Why} cause=${cause} />`}
    <${Facts} entries=${[
      ["Calls in flight", html`<${InFlight} name=${entry.id} load=${load} />`],
      ["Lines that wait for it", number(load.lines_waiting)],
      ["Requests in its queue", load.queued === null ? null : `${number(load.queued)}, ${number(load.running)} being worked on`],
      ["Refused in the last minute", number(load.refused)],
      ["Lines, tokens", `${load.lines_per_second.toFixed(1)} lines/s, ${number(Math.round(load.tokens_per_second))} tokens/s`],
      ["A call takes", times(took)],
      ["First byte after", times(first)],
      ["Circuit breaker", BREAKERS[load.breaker]],
    ]} />
    <h3>By process</h3>
    <${Table} label="Processes that use it" columns=${PARTS} rows=${load.processes} id=${({ process, server }) => `${process} ${server}`} />
  `;
}

/** @param {{entry: object, state: {tone: string, word: string}, reload: () => void, onClose: () => void}} props */
export function EntryPanel({ entry, state, reload, onClose }) {
  const isServer = entry.object === "server";
  // A list of batches has one model, so a server with several leaves the list to the panels of its models.
  const model = isServer ? entry.used_by.length === 1 && entry.used_by[0] : entry.id;
  const openLimit = () => openDialog(`Limit of ${entry.id}`, (close) => html`<${Limit} ...${{ entry, reload, close }} />`);
  return html`
    <${Panel} title=${entry.id} onClose=${onClose}>
      ${entry.fault && html`<${Banner} tone="bad">${entry.fault}<//>`}
      ${!isServer && entry.load?.cause && html`<${Why} cause=${entry.load.cause} />`}
      <section>
        <${Facts} entries=${[
          ["State", html`<${State} tone=${state.tone}>${state.word}<//>`],
          [isServer ? "Models" : "Servers", entry.used_by.length ? html`<${Names} entry=${entry} />` : "none"],
          ["Changed", html`<${When} at=${entry.changed_at} />`],
          ["By", html`<${Copy} text=${entry.author} label="copy the author" />`],
          ["Batches", model && html`<a href=${address("/batches", { model })}>Show batches</a>`],
        ]} />
        ${!entry.removed && html`<div class="buttons"><${Stop} ...${{ entry, reload }} /><${Button} act=${openLimit}>Change the limit<//>${!isServer && html`<${Button} act=${() => openTestCall(entry.id)}>Test call<//>`}</div>`}
      </section>
      ${isServer && !entry.removed && html`<section><h3>Now</h3><${Load} entry=${entry} /></section>`}
      <section>
        <h3>Settings</h3>
        <${Json} value=${entry.settings} />
        ${!entry.removed && html`<p class="muted">Call ${isServer ? "it" : "each of its servers"} directly with <${Copy} text=${`tidemill ${entry.object}s test ${entry.id}`} label="copy the command" /></p>`}
        <p class="muted">Other settings change with <${Copy} text=${`tidemill ${entry.object}s set ${entry.id} NAME=VALUE`} label="copy the command" /></p>
      </section>
    <//>
  `;
}
