/** Where lines wait: by stage and model, for how long, and how fast they come and go. */

import { call, isOperator } from "../core/client.js";
import { count, duration, number, rate } from "../core/format.js";
import { useLive } from "../core/live.js";
import { address, place, setQuery } from "../core/route.js";
import { html } from "../core/view.js";
import { Card, Empty, When } from "../ui/basics.js";
import { SelectField } from "../ui/form.js";
import { Page } from "../ui/page.js";
import { Table } from "../ui/table.js";

const DOES = { ingest: "validation", processors: "calls", results: "files" };
const PROJECTS = [["", "this project"], ["*", "all projects"]];

/** How long its lines take: some have no rate yet, and others none any more. */
function lagOf({ lines, lines_per_second: speed, lag_seconds: lag }) {
  if (lag !== null) return duration(lag);
  if (!lines) return "–";
  return speed === null ? "not known yet" : "stands still";
}

const COLUMNS = [
  { id: "stage", title: "Waits for", width: "minmax(110px, 1fr)", cell: ({ stage }) => html`<strong>${DOES[stage] ?? stage}</strong>` },
  { id: "model", title: "Model", width: "minmax(120px, 1.4fr)", sort: ({ model }) => model ?? "", cell: ({ model }) => model ?? "–" },
  { id: "lines", title: "Lines", width: "minmax(90px, 1fr)", isNumber: true, sort: ({ lines }) => lines, cell: ({ lines }) => number(lines) },
  { id: "batches", title: "Batches", width: "minmax(80px, 0.8fr)", isNumber: true, sort: ({ batches }) => batches, cell: ({ batches, status, model }) => html`<a href=${address("/batches", { status, model })}>${number(batches)}</a>` },
  { id: "rate", title: "Rate", width: "minmax(110px, 1fr)", isNumber: true, sort: (row) => row.lines_per_second ?? -1, cell: (row) => (row.lines_per_second === null ? "–" : rate(row.lines_per_second)) },
  { id: "lag", title: "Lag", width: "minmax(110px, 1fr)", isNumber: true, sort: (row) => row.lag_seconds ?? Infinity, cell: lagOf },
  { id: "oldest", title: "Oldest", width: "minmax(110px, 1fr)", isNumber: true, sort: (row) => row.oldest_at ?? Infinity, cell: ({ oldest_at: at }) => html`<${When} at=${at} />` },
];

export default function Queues() {
  const project = place.value.query.get("project") ?? "";
  const live = useLive(`queues ${project}`, (stop) => call("GET", "/queues", { query: { project }, signal: stop }), { every: 5 });
  const { data } = live;
  const lines = data?.data.reduce((sum, row) => sum + row.lines, 0);
  return html`
    <${Page} title="Queues" live=${live}>
      ${isOperator() && html`<div class="toolbar"><${SelectField} id="project" label="Of" value=${project} options=${PROJECTS} onChange=${(chosen) => setQuery({ project: chosen })} /></div>`}
      <div class="cards-row">
        <${Card} title="Waiting" value=${data ? count(lines, "line") : "–"} note="In all stages" />
        <${Card} title="In" value=${data ? rate(data.lines_per_second_in) : "–"} note="Mean of five minutes" />
        <${Card} title="Out" value=${data ? rate(data.lines_per_second_out) : "–"} note="Mean of five minutes" />
      </div>
      ${data?.data.length === 0
        ? html`<${Empty} command="tidemill list">No line waits.<//>`
        : html`<${Table} label="Queues" columns=${COLUMNS} rows=${data?.data} error=${live.error} id=${({ status, model }) => `${status} ${model}`} />`}
    <//>
  `;
}
