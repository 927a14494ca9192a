/** All projects: what each uses today, with a link to its overview. */

import { call, session } from "../core/client.js";
import { brief, cost, DAY, number } from "../core/format.js";
import { useLive } from "../core/live.js";
import { html } from "../core/view.js";
import { Banner, Section } from "../ui/basics.js";
import { Chart } from "../ui/chart.js";
import { Page } from "../ui/page.js";
import { Table } from "../ui/table.js";
import { seriesOf } from "./series.js";

const LIMIT = 1000;

const COLUMNS = [
  { id: "project", title: "Project", width: "minmax(140px, 2fr)", sort: ({ project }) => project, cell: ({ project }) => html`<a class="row-link clip" href=${`?${new URLSearchParams({ project })}#/`}>${project}</a>` },
  { id: "ended", title: "Lines in 24 h", width: "minmax(110px, 1fr)", isNumber: true, sort: ({ ended }) => ended, cell: ({ ended }) => number(ended) },
  { id: "batches", title: "Batches today", width: "minmax(110px, 1fr)", isNumber: true, sort: ({ batches }) => batches, cell: ({ batches }) => number(batches) },
  { id: "tokens", title: "Tokens today", width: "minmax(110px, 1fr)", isNumber: true, sort: ({ tokens }) => tokens, cell: ({ tokens }) => brief(tokens) },
  { id: "cost", title: "Cost today", width: "minmax(100px, 1fr)", isNumber: true, sort: (row) => Number(row.cost), cell: (row) => cost(row.cost) },
];

async function load(signal) {
  const midnight = Math.floor(Date.now() / 1000 / DAY) * DAY;
  const [lines, usage] = await Promise.all([
    call("GET", "/throughput", { query: { project: "*", window: "24h" }, signal }),
    call("GET", "/usage", { query: { project: "*", group_by: "project", start_time: midnight, limit: LIMIT }, signal }),
  ]);
  const rows = new Map();
  const add = (project, found) => rows.set(project, { project, ended: 0, batches: 0, tokens: 0, cost: "0", ...rows.get(project), ...found });
  for (const project of session.peek().projects) add(project, {});
  for (const { project, lines: ended } of lines.projects) add(project, { ended });
  for (const { project, batches, input_tokens: input, output_tokens: output, cost: { total } } of usage.data) add(project, { batches, tokens: input + output, cost: total });
  const busiest = (one, other) => other.ended - one.ended || (one.project < other.project ? -1 : 1);
  return { rows: [...rows.values()].sort(busiest), isCut: usage.has_more, series: seriesOf(lines) };
}

export default function Projects() {
  const live = useLive("projects", load, { every: 30 });
  const { data } = live;
  return html`
    <${Page} title="Projects" live=${live}>
      ${data?.series.rates.some(Boolean) &&
      html`<${Section} title="Throughput of all projects">
        <${Chart} title="Throughput of all projects" unit="lines/s" times=${data.series.times} series=${data.series.stack} height=${160} />
      <//>`}
      ${data?.isCut && html`<${Banner}>Only ${number(LIMIT)} projects have their usage here; <code>tidemill usage --project '*' --by project</code> has all.<//>`}
      <${Table} label="Projects" columns=${COLUMNS} rows=${data?.rows} error=${live.error} id=${({ project }) => project} />
      <p class="muted small note-below">Days are those of UTC; batches, tokens and cost are of batches that have ended.</p>
    <//>
  `;
}
