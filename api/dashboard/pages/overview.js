/** The first page of an operator: is anything late or stuck, and what is at work. */

import { call, canWrite, isOperator } from "../core/client.js";
import { brief, cost, count, DAY, number, rate } from "../core/format.js";
import { RELOAD, useLive } from "../core/live.js";
import { address } from "../core/route.js";
import { html } from "../core/view.js";
import { Card, Empty, LinkButton, Section, Skeleton } from "../ui/basics.js";
import { Chart, Spark } from "../ui/chart.js";
import { Page } from "../ui/page.js";
import { Table } from "../ui/table.js";
import { Attention } from "./overview/attention.js";
import { seriesOf } from "./series.js";
import { CARD, IN_FLIGHT, LINES, nameColumn, QUEUED, REFUSED, renewed, ServerCard, STATE, TIMES, TOKENS, WAITING } from "./servers/load.js";
import { BatchCard, BatchName, BatchProgress, BatchState, counts, endedAt, ending, isOver, isStalled, modelOf, Slack, slackOf } from "./shown.js";

const AT_WORK = ["validating", "in_progress", "finalizing", "cancelling"];
const LIMIT = 100;
const BROKEN = ["failed", "expired"];
const RECENT = 20;
const SERVERS_MAX = 50;
const SERVER_COLUMNS = [nameColumn("Server"), STATE, IN_FLIGHT, WAITING, QUEUED, REFUSED, LINES, TOKENS, TIMES];

async function load(stop) {
  const midnight = Math.floor(Date.now() / 1000 / DAY) * DAY;
  const lists = (statuses, limit) => statuses.map((status) => call("GET", "/batches", { query: { status, limit }, signal: stop }));
  const [recent, usage, hooks, day, servers, found, broken] = await Promise.all([
    call("GET", "/batches", { query: { limit: RECENT }, signal: stop }),
    call("GET", "/usage", { query: { start_time: midnight }, signal: stop }),
    call("GET", "/webhook_endpoints", { signal: stop }),
    call("GET", "/throughput", { query: { window: "24h" }, signal: stop }),
    isOperator() ? call("GET", "/admin/servers", { query: { limit: SERVERS_MAX }, signal: stop }) : { data: [] },
    Promise.all(lists(AT_WORK, LIMIT)),
    Promise.all(lists(BROKEN, RECENT)),
  ]);
  const over = recent.data.filter(isOver);
  const others = broken.flatMap(({ data }) => data).filter(({ id }) => !over.some((batch) => batch.id === id));
  return {
    work: found.flatMap(({ data }) => data),
    isCut: found.some(({ has_more: hasMore }) => hasMore),
    recent: over,
    /** What ended in the last day, and what did not end well even if many batches are newer. */
    ended: [...over, ...others].filter((batch) => endedAt(batch) > Date.now() / 1000 - DAY),
    usage: usage.data[0],
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
  const risky = work.filter((batch) => isStalled(batch) || slackOf(batch).tone === "bad");
  const waiting = work.reduce((total, { request_counts: { total: all, completed, failed } }) => total + all - completed - failed, 0);
  return html`
    <div class="cards-row">
      <${Card} title="Rate" value=${rate(speeds.reduce((total, speed) => total + speed, 0))} note=${`${count(waiting, "line")} to go`}>
        <${Spark} values=${series.rates} label="Lines a second in the last 24 hours" />
      <//>
      <${Card} title="Batches at work" value=${`${number(work.length)}${isCut ? "+" : ""}`} note=${html`<a href=${address("/batches", { status: "in_progress" })}>Show those in progress</a>`} />
      <${Card} title="Late or stalled" value=${number(risky.length)} tone=${risky.length ? "bad" : ""} note=${risky.length ? "See below" : "All keep their deadline"} />
      <${Card} title="Tokens today (UTC)" value=${brief(usage.input_tokens + usage.output_tokens)}
        note=${`${count(usage.lines, "line")} of ended batches${Number(usage.cost.total) ? `, cost ${cost(usage.cost.total)}` : ""}`}>
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
