/** Usage and cost. */

import { call } from "../core/client.js";
import { cost, number } from "../core/format.js";
import { useLive } from "../core/live.js";
import { place, setQuery } from "../core/route.js";
import { html } from "../core/view.js";
import { Banner, Empty } from "../ui/basics.js";
import { SelectField } from "../ui/form.js";
import { Page } from "../ui/page.js";
import { Table } from "../ui/table.js";

const LIMIT = 1000;
const DAY = 86_400;
const GROUPS = [["model", "model"], ["day", "day"], ["day,model", "day and model"]];
const SPANS = [["1", "a day"], ["7", "7 days"], ["30", "30 days"], ["365", "a year"]];
const NUMBERS = [["batches", "Batches"], ["lines", "Lines"], ["input_tokens", "Input tokens"], ["output_tokens", "Output tokens"]];

const columnsOf = (by) => [
  ...by.split(",").map((name) => ({ id: name, title: name, width: "minmax(110px, 1fr)", cell: (row) => html`<span title=${row[name]}>${row[name] ?? "–"}</span>` })),
  ...NUMBERS.map(([id, title]) => ({ id, title, width: "minmax(70px, 1fr)", isNumber: true, cell: (row) => number(row[id]), sort: (row) => row[id] })),
  { id: "cost", title: "Cost", width: "minmax(60px, 1fr)", isNumber: true, cell: (row) => cost(row.cost.total), sort: (row) => Number(row.cost.total) },
];

export default function Usage() {
  const { query } = place.value;
  const by = query.get("by") ?? "model";
  const days = query.get("days") ?? "30";
  const live = useLive(`usage ${by} ${days}`, (stop) => {
    const start = Math.floor(Date.now() / 1000) - Number(days) * DAY;
    return call("GET", "/usage", { query: { group_by: by, start_time: start, limit: LIMIT }, signal: stop });
  }, { every: 30 });
  return html`
    <${Page} title="Usage" live=${live}>
      <div class="toolbar">
        <${SelectField} id="by" label="By" value=${by} options=${GROUPS} onChange=${(value) => setQuery({ by: value })} />
        <${SelectField} id="days" label="Of the last" value=${days} options=${SPANS} onChange=${(value) => setQuery({ days: value })} />
      </div>
      ${live.data?.has_more && html`<${Banner}>Only the first ${number(LIMIT)} sums are shown; <code>tidemill usage --csv</code> has all.<//>`}
      ${live.data?.data.length === 0
        ? html`<${Empty} command="tidemill usage --csv">No batch has ended in this time.<//>`
        : html`<${Table} label="Usage" columns=${columnsOf(by)} rows=${live.data?.data} error=${live.error} id=${(row) => by.split(",").map((name) => row[name]).join(" ")} />`}
    <//>
  `;
}
