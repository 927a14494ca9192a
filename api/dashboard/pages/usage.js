/** Usage and cost: totals, a chart by day, and a table. Days are those of UTC. */

import { call, Fault, isOperator } from "../core/client.js";
import { brief, cost, count, DAY, day, number } from "../core/format.js";
import { useLive } from "../core/live.js";
import { place, setQuery } from "../core/route.js";
import { html, useMemo } from "../core/view.js";
import { Banner, Button, Card, Copy, Empty, Section, Skeleton } from "../ui/basics.js";
import { Chart } from "../ui/chart.js";
import { SelectField } from "../ui/form.js";
import { Page } from "../ui/page.js";
import { Table } from "../ui/table.js";
import { csvOf, saveText } from "./usage/csv.js";
import { MEASURES, stackOf } from "./usage/days.js";

const LIMIT = 1000;
/** Pages of a chart; a request sums the whole time again for each. */
const PAGES_MAX = 10;
const CSV_PAGES_MAX = 100;
const GROUPS = [["model", "model"], ["day", "day"], ["day,model", "day and model"]];
const PROJECTS = [["project", "project"], ["day,project", "day and project"]];
const SPANS = [["1", "today"], ["7", "7 days"], ["30", "30 days"], ["365", "a year"]];
const TITLES = { day: "Day", model: "Model", project: "Project" };
const NUMBERS = [["batches", "Batches"], ["lines", "Lines"], ["input_tokens", "Input tokens"], ["output_tokens", "Output tokens"]];

const columnsOf = (by) => [
  ...by.map((name) => ({ id: name, title: TITLES[name], width: "minmax(110px, 1fr)", sort: (row) => row[name] ?? "", cell: (row) => html`<span title=${row[name]}>${row[name] ?? "–"}</span>` })),
  ...NUMBERS.map(([id, title]) => ({ id, title, width: "minmax(70px, 1fr)", isNumber: true, cell: (row) => number(row[id]), sort: (row) => row[id] })),
  { id: "cost", title: "Cost", width: "minmax(60px, 1fr)", isNumber: true, cell: (row) => cost(row.cost.total), sort: (row) => Number(row.cost.total) },
];

/** What the address asks for; another value of it counts as the first. */
function wanted(query) {
  const known = (name, options, usual) => (options.some(([key]) => key === query.get(name)) ? query.get(name) : usual);
  const groups = isOperator() ? [...GROUPS, ...PROJECTS] : GROUPS;
  const by = known("by", groups, "model").split(",");
  const days = known("days", SPANS, "30");
  const measure = known("show", Object.entries(MEASURES), "tokens");
  return { groups, by, days, measure, split: by.find((name) => name !== "day") ?? null };
}

/** The first sums of a group, up to `pages` pages of them. */
async function sumsOf(query, by, pages, signal) {
  const rows = [];
  let page = { last_id: null };
  do {
    page = await call("GET", "/usage", { query: { ...query, group_by: by.join(), limit: LIMIT, after: page.last_id }, signal });
    rows.push(...page.data);
    pages -= 1;
  } while (page.has_more && pages);
  return { rows, hasMore: page.has_more };
}

async function load({ by, days, split }, signal) {
  const start = Math.floor(Date.now() / 1000 / DAY) * DAY - (Number(days) - 1) * DAY;
  const query = { start_time: start, project: split === "project" ? "*" : null };
  const [total, table, daily] = await Promise.all([
    sumsOf(query, [], 1, signal),
    sumsOf(query, by, 1, signal),
    sumsOf(query, split ? ["day", split] : ["day"], PAGES_MAX, signal),
  ]);
  return { start, query, total: total.rows[0], table, daily };
}

function Totals({ total }) {
  return html`
    <div class="cards-row">
      <${Card} title="Tokens" value=${brief(total.input_tokens + total.output_tokens)}
        note=${`${number(total.input_tokens)} in, ${number(total.output_tokens)} out`} />
      <${Card} title="Lines" value=${number(total.lines)} note=${`of ${count(total.batches, "batch", "batches")}`} />
      <${Card} title="Cost" value=${cost(total.cost.total)} />
    </div>
  `;
}

function Days({ daily, start, split, measure }) {
  const { times, series } = useMemo(() => stackOf(daily.rows, split, measure, start), [daily, split, measure, start]);
  const [words, unit] = MEASURES[measure];
  const title = `${words[0].toUpperCase()}${words.slice(1)} by day${split ? ` and ${split}` : ""}`;
  return html`
    <${Section} title=${title}>
      ${daily.hasMore
        ? html`<p>There are too many sums for a chart. Choose a shorter time.</p>`
        : html`<${Chart} title=${title} unit=${unit} times=${times} series=${series} height=${220} show=${measure === "cost" ? cost : brief} isByDay />`}
    <//>
  `;
}

export default function Usage() {
  const asked = wanted(place.value.query);
  const { groups, by, days, measure, split } = asked;
  const live = useLive(`usage ${by} ${days}`, (stop) => load(asked, stop), { every: 30 });
  const { data } = live;
  const command = `tidemill usage --by ${by.join()}${data ? ` --since ${day(data.start)}` : ""}${split === "project" ? " --project '*'" : ""} --csv`;
  const save = async () => {
    const { rows, hasMore } = await sumsOf(data.query, by, CSV_PAGES_MAX);
    if (hasMore) throw new Fault(400, `These are more than ${number(rows.length)} sums. Choose a shorter time, or run: ${command}`);
    saveText(csvOf(rows, by), `usage-${by.join("-")}-${day(data.start)}.csv`);
  };
  const isEmpty = data && !data.total.batches;
  return html`
    <${Page} title="Usage" live=${live} tools=${data && !isEmpty && html`<${Button} icon="download" act=${save}>CSV<//>`}>
      <div class="toolbar">
        <${SelectField} id="by" label="By" value=${by.join()} options=${groups} onChange=${(value) => setQuery({ by: value })} />
        <${SelectField} id="days" label="Of" value=${days} options=${SPANS} onChange=${(value) => setQuery({ days: value })} />
        <${SelectField} id="show" label="Chart of" value=${measure} options=${Object.entries(MEASURES).map(([key, [words]]) => [key, words])} onChange=${(value) => setQuery({ show: value })} />
      </div>
      ${!data && !live.error && html`<${Skeleton} rows=${4} height=${64} />`}
      ${isEmpty && html`<${Empty} command="tidemill usage --csv">No batch has ended in this time.<//>`}
      ${data && !isEmpty && html`
        <${Totals} total=${data.total} />
        <${Days} ...${data} split=${split} measure=${measure} />
        ${data.table.hasMore && html`<${Banner}>Only the first ${number(LIMIT)} sums are shown; the CSV has up to ${number(CSV_PAGES_MAX * LIMIT)}, and <code>tidemill usage --csv</code> all.<//>`}
        <${Table} label="Usage" columns=${columnsOf(by)} rows=${data.table.rows} id=${(row) => by.map((name) => row[name]).join(" ")} />
        <p class="note-below"><${Copy} text=${command} label="copy the command" /></p>
      `}
    <//>
  `;
}
