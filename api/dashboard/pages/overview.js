/** The first page of an operator: is anything late or stuck, and what is at work. */

import { call, canWrite, isOperator } from "../core/client.js";
import { brief, cost, count, moment, number, rate } from "../core/format.js";
import { RELOAD, useLive } from "../core/live.js";
import { address, batchPath } from "../core/route.js";
import { html } from "../core/view.js";
import { Card, Empty, LinkButton, Section, Skeleton } from "../ui/basics.js";
import { Chart, Spark } from "../ui/chart.js";
import { Page } from "../ui/page.js";
import { State } from "../ui/state.js";
import { Table } from "../ui/table.js";
import { seriesOf } from "./series.js";
import { CARD, IN_FLIGHT, LINES, nameColumn, QUEUED, REFUSED, renewed, ServerCard, STATE, stateOf as stateOfServer, TIMES, TOKENS, WAITING } from "./servers/load.js";
import { BatchCard, BatchName, BatchProgress, BatchState, called, counts, ending, isOver, modelOf, Slack, slackOf, stalls, stateOf, waitText } from "./shown.js";

const AT_WORK = ["validating", "in_progress", "finalizing", "cancelling"];
const LIMIT = 100;
const RECENT = 20;
const DAY = 86_400;
const SHOWN_MAX = 12;
const SERVERS_MAX = 50;
const SERVER_COLUMNS = [nameColumn("Server"), STATE, IN_FLIGHT, WAITING, QUEUED, REFUSED, LINES, TOKENS, TIMES];

async function load(stop) {
  const midnight = Math.floor(Date.now() / 1000 / DAY) * DAY;
  const lists = AT_WORK.map((status) => call("GET", "/batches", { query: { status, limit: LIMIT }, signal: stop }));
  const [recent, usage, hooks, day, servers, ...found] = await Promise.all([
    call("GET", "/batches", { query: { limit: RECENT }, signal: stop }),
    call("GET", "/usage", { query: { start_time: midnight, group_by: "model" }, signal: stop }),
    call("GET", "/webhook_endpoints", { signal: stop }),
    call("GET", "/throughput", { query: { window: "24h" }, signal: stop }),
    isOperator() ? call("GET", "/admin/servers", { query: { limit: SERVERS_MAX }, signal: stop }) : { data: [] },
    ...lists,
  ]);
  return {
    work: found.flatMap(({ data }) => data),
    isCut: found.some(({ has_more: hasMore }) => hasMore),
    recent: recent.data.filter(isOver),
    usage: usage.data,
    hooks: hooks.data,
    servers: servers.data,
    series: seriesOf(day),
  };
}

/** Update a batch at work in its row; reload for a new batch or a change of status. */
function changed(type, object, data) {
  if (type === "webhook_endpoint" || type === "catalog") return RELOAD;
  if (type === "load") return data && { ...data, servers: renewed(data.servers, object.servers) };
  if (type !== "batch" || !data) return undefined;
  const isKnown = data.work.some(({ id, status }) => id === object.id && status === object.status);
  return isKnown ? { ...data, work: data.work.map((batch) => (batch.id === object.id ? object : batch)) } : RELOAD;
}

/** Problems to look at: a tone, a sentence, and a link. */
function troubles({ work, recent, hooks, servers }) {
  const found = [];
  for (const server of servers) {
    const { tone, word } = stateOfServer(server);
    const cause = server.load?.cause;
    if (tone !== "failed") continue;
    const text = server.fault ?? (cause ? `${cause.message} Since ${moment(cause.since)}.` : `It is ${word}.`);
    found.push({ tone, href: address("/servers", { name: server.id }), name: server.id, text });
  }
  for (const batch of work) {
    const [wait] = stalls(batch);
    const slack = slackOf(batch);
    if (wait) found.push({ tone: "part", batch, text: waitText(wait) });
    else if (slack.tone === "bad") found.push({ tone: "failed", batch, text: `Will end ${slack.text}.` });
    else if (slack.tone === "part") found.push({ tone: "part", batch, text: `Only ${slack.text}.` });
    if (batch.tidemill.fault) found.push({ tone: "failed", batch, text: `${count(batch.tidemill.fault.records, "record")} became dead letters: ${batch.tidemill.fault.reason}` });
  }
  for (const batch of recent) {
    const { tone, word } = stateOf(batch);
    if (tone === "failed") found.push({ tone, batch, text: `It ended as: ${word}.` });
  }
  for (const hook of hooks) {
    const { enabled, failing_since: since } = hook.tidemill;
    const to = { href: address("/webhooks", { endpoint: hook.id }), name: hook.name };
    if (!enabled) found.push({ ...to, tone: "failed", text: "Deliveries failed for five days, and the endpoint is disabled." });
    else if (since) found.push({ ...to, tone: "part", text: `Deliveries have failed since ${moment(since)}.` });
  }
  return found;
}

const Trouble = ({ tone, batch, href, name, text }) => html`
  <li>
    <${State} tone=${tone}><a href=${href ?? `#${batchPath(batch.id)}`}>${name ?? called(batch)}</a><//>
    <span>${text}</span>
  </li>
`;

function Attention({ data }) {
  const found = troubles(data);
  return html`
    <${Section} title="Needs attention" aside=${found.length > SHOWN_MAX && html`<a href="#/batches">${number(found.length)} in all</a>`}>
      ${found.length
        ? html`<ul class="troubles">${found.slice(0, SHOWN_MAX).map((one, place) => html`<${Trouble} key=${place} ...${one} />`)}</ul>`
        : html`<p><${State} tone="done">All is well: nothing is late, stalled or refused.<//></p>`}
    <//>
  `;
}

const WORK_COLUMNS = [
  { id: "name", title: "Name", width: "minmax(210px, 2fr)", cell: (batch) => html`<${BatchName} batch=${batch} />` },
  { id: "state", title: "State", width: "minmax(168px, 1fr)", cell: (batch) => html`<${BatchState} batch=${batch} />` },
  { id: "model", title: "Model", width: "minmax(80px, 1fr)", yields: 2, cell: modelOf },
  { id: "progress", title: "Progress", width: "minmax(60px, 1fr)", yields: 1, cell: (batch) => html`<${BatchProgress} batch=${batch} />` },
  { id: "lines", title: "Lines", width: "minmax(200px, 1fr)", isNumber: true, cell: counts },
  { id: "end", title: "End", width: "minmax(110px, 1.3fr)", yields: 4, cell: (batch) => html`<span title=${ending(batch)}>${ending(batch)}</span>` },
];
const SLACK = { id: "slack", title: "Slack", width: "minmax(90px, 1fr)", yields: 3, cell: (batch) => html`<${Slack} batch=${batch} />` };

const Batches = ({ label, rows, columns }) => html`
  <${Table} label=${label} columns=${columns} rows=${rows} id=${({ id }) => id}
    card=${(batch) => html`<${BatchCard} batch=${batch} />`} cardHeight=${92} />
`;

function Figures({ work, isCut, usage, series }) {
  const speeds = work.map(({ tidemill }) => tidemill.progress?.lines_per_second ?? 0);
  const risky = work.filter((batch) => stalls(batch).length || slackOf(batch).tone === "bad");
  const sum = (field) => usage.reduce((total, row) => total + row[field], 0);
  const price = usage.reduce((total, row) => total + Number(row.cost.total), 0);
  const waiting = work.reduce((total, { request_counts: { total: all, completed, failed } }) => total + all - completed - failed, 0);
  return html`
    <div class="cards-row">
      <${Card} title="Rate" value=${rate(speeds.reduce((total, speed) => total + speed, 0))} note=${`${count(waiting, "line")} to go`}>
        <${Spark} values=${series.rates} label="Lines a second in the last 24 hours" />
      <//>
      <${Card} title="Batches at work" value=${`${number(work.length)}${isCut ? "+" : ""}`} note=${html`<a href=${address("/batches", { status: "in_progress" })}>Show those in progress</a>`} />
      <${Card} title="Late or stalled" value=${number(risky.length)} tone=${risky.length ? "bad" : ""} note=${risky.length ? "See below" : "All keep their deadline"} />
      <${Card} title="Tokens today (UTC)" value=${brief(sum("input_tokens") + sum("output_tokens"))}
        note=${`${count(sum("lines"), "line")} of ended batches${price ? `, cost ${cost(price)}` : ""}`}>
        <${Spark} values=${series.tokens} label="Tokens in the last 24 hours" tone="done" />
      <//>
    </div>
  `;
}

export default function Overview() {
  const live = useLive("overview", load, { every: 5, onChange: changed, wantsLoad: isOperator() });
  const { data } = live;
  if (!data) return html`<${Page} title="Overview" live=${live}>${!live.error && html`<${Skeleton} rows=${4} height=${92} />`}<//>`;
  const action = canWrite() && html`<${LinkButton} href="#/new" kind="primary" icon="plus">New batch<//>`;
  return html`
    <${Page} title="Overview" live=${live}>
      <${Figures} ...${data} />
      <${Attention} data=${data} />
      ${data.series.rates.some(Boolean) &&
      html`<${Section} title="Throughput of 24 hours">
        <${Chart} title="Throughput of 24 hours" unit="lines/s" times=${data.series.times} series=${data.series.stack} height=${160} />
      <//>`}
      <${Section} title="At work">
        ${data.work.length
          ? html`<${Batches} label="Batches at work" rows=${data.work} columns=${[...WORK_COLUMNS, SLACK]} />`
          : html`<${Empty} action=${action} command="tidemill run requests.jsonl">No batch is at work. Drop a JSONL file on this page to start one.<//>`}
      <//>
      ${data.servers.length > 0 &&
      html`<${Section} title="Servers" aside=${html`<a href="#/servers">All servers</a>`}>
        <${Table} label="Servers" columns=${SERVER_COLUMNS} rows=${data.servers} id=${({ id }) => id}
          card=${(server) => html`<${ServerCard} entry=${server} />`} cardHeight=${CARD} />
      <//>`}
      ${data.recent.length > 0 &&
      html`<${Section} title="Ended last" aside=${html`<a href="#/batches">All batches</a>`}><${Batches} label="Batches that ended last" rows=${data.recent} columns=${WORK_COLUMNS} /><//>`}
    <//>
  `;
}
