/** The batches, newest first: filters in the address, live, and actions on those that are selected. */

import { call, canWrite, make, save } from "../core/client.js";
import { age, cost, count, moment, percent } from "../core/format.js";
import { RELOAD, useLive } from "../core/live.js";
import { pageOf } from "../core/paging.js";
import { batchPath, place, setQuery } from "../core/route.js";
import { html, signal, useRef } from "../core/view.js";
import { Button, Empty, LinkButton, Skeleton } from "../ui/basics.js";
import { Filters } from "../ui/form.js";
import { toast } from "../ui/overlay.js";
import { Page } from "../ui/page.js";
import { Table, useColumns } from "../ui/table.js";
import { BatchCard, BatchName, BatchProgress, BatchState, cancel, counts, ending, isOver, modelOf, Slack } from "./shown.js";

const PAGE = 100;
const FRESH = 50;
const DAY = 86_400;
const STATUSES = ["validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"];
const CREATED = [["1", "Last day"], ["7", "Last 7 days"], ["30", "Last 30 days"]];
const selected = signal(new Set());

const COLUMNS = [
  { id: "name", title: "Name", width: "minmax(160px, 2.4fr)", cell: (batch) => html`<${BatchName} batch=${batch} />` },
  { id: "state", title: "State", width: "minmax(168px, 1fr)", cell: (batch) => html`<${BatchState} batch=${batch} />` },
  { id: "model", title: "Model", width: "minmax(80px, 1fr)", cell: modelOf },
  { id: "progress", title: "Progress", width: "minmax(72px, 0.9fr)", isWide: true, cell: (batch) => html`<${BatchProgress} batch=${batch} />` },
  { id: "lines", title: "Lines", width: "minmax(200px, 1fr)", isNumber: true, cell: counts },
  { id: "end", title: "End", width: "minmax(110px, 1.2fr)", cell: (batch) => html`<span title=${ending(batch)}>${ending(batch)}</span>` },
  { id: "slack", title: "Slack", width: "minmax(90px, 0.8fr)", cell: (batch) => html`<${Slack} batch=${batch} />` },
  { id: "cost", title: "Cost", width: "92px", isNumber: true, cell: ({ tidemill: { cost: price, progress } }) => (price ?? progress?.cost ? cost((price ?? progress.cost).total) : "–") },
  { id: "created", title: "Age", width: "72px", isNumber: true, order: true, cell: ({ created_at: at }) => html`<time title=${moment(at)}>${age(Date.now() / 1000 - at)}</time>` },
  { id: "endpoint", title: "Endpoint", width: "minmax(140px, 1fr)", isOptional: true, cell: ({ endpoint }) => html`<code>${endpoint}</code>` },
  { id: "window", title: "Window", width: "72px", isOptional: true, cell: ({ completion_window: text }) => text },
  { id: "done", title: "Done", width: "64px", isOptional: true, isNumber: true, cell: ({ request_counts: { total, completed, failed } }) => percent(completed + failed, total) },
];

const FILTERS = [
  { name: "status", title: "State", options: STATUSES.map((status) => [status, status.replace("_", " ")]) },
  { name: "created", title: "Created", options: CREATED },
  { name: "model", title: "Model" },
  { name: "search", title: "Search", placeholder: "Id, name or metadata" },
  { name: "endpoint", title: "Endpoint", placeholder: "/v1/embeddings" },
  { name: "metadata", title: "Metadata", placeholder: "team=finance" },
  { name: "single", title: "Kind", options: [["true", "Single requests"]] },
];

/** The query of the API for the filters of the address. */
function wanted(query) {
  const found = Object.fromEntries(["status", "model", "search", "endpoint", "single", "order"].map((name) => [name, query.get(name)]));
  const days = Number(query.get("created"));
  // Whole hours, so that one list keeps one name in the cache.
  if (days) found.created_after = Math.floor(Date.now() / 3_600_000) * 3_600 - days * DAY;
  const [name, ...value] = (query.get("metadata") ?? "").split("=");
  if (name && value.length) found[`metadata[${name}]`] = value.join("=");
  return found;
}

/** The newest page of what the service has, in front of what was loaded before. */
function merged(before, page) {
  const fresh = new Set(page.rows.map(({ id }) => id));
  const oldest = page.rows.at(-1)?.created_at ?? 0;
  const older = page.hasMore ? before.rows.filter(({ id, created_at: at }) => !fresh.has(id) && at <= oldest) : [];
  return { ...before, rows: [...page.rows, ...older] };
}

/** All batches of a filter that are loaded; `more` loads the next page. */
function useBatches(query) {
  const api = wanted(query);
  const key = `batches ${new URLSearchParams(Object.entries(api).filter(([, value]) => value))}`;
  const isAscending = api.order === "asc";
  const busy = useRef(false);
  const live = useLive(key, async (stop, before) => {
    const page = await pageOf("/batches", api, { limit: before ? FRESH : PAGE, signal: stop });
    if (!before) return page;
    return isAscending ? { ...before, rows: refreshed(before.rows, page.rows) } : merged(before, page);
  }, { onChange: changed });
  const { data } = live;
  async function more() {
    if (busy.current || !data?.hasMore) return;
    busy.current = true;
    try {
      const page = await pageOf("/batches", api, { limit: PAGE, after: data.after });
      Object.assign(data, page, { rows: [...data.rows, ...page.rows] });
      live.reload();
    } catch (error) {
      toast(error.message, "bad");
    }
    busy.current = false;
  }
  return { ...live, more };
}

/** A batch in the list takes its new state; any other change may add a row, or take one away. */
function changed(type, object, data) {
  if (type !== "batch" || !data) return undefined;
  const isKnown = data.rows.some(({ id, status }) => id === object.id && status === object.status);
  return isKnown ? { ...data, rows: refreshed(data.rows, [object]) } : RELOAD;
}

/** Rows with the newer state of those that came again. */
function refreshed(rows, fresh) {
  const found = new Map(fresh.map((batch) => [batch.id, batch]));
  return rows.map((batch) => found.get(batch.id) ?? batch);
}

async function rerun(batches) {
  for (const { id } of batches) {
    await make(`${batchPath(id)}/rerun`, { lines: "unfinished" });
    selected.value = new Set([...selected.value].filter((other) => other !== id));
  }
  toast(`Started ${count(batches.length, "rerun")} of what did not succeed.`);
}

function download(batches) {
  for (const { id, output_file_id: file } of batches) save(file, `${id}_output.jsonl`);
}

function Bulk({ rows, reload }) {
  const chosen = rows.filter(({ id }) => selected.value.has(id));
  if (!chosen.length) return null;
  const open = chosen.filter((batch) => !isOver(batch) && batch.status !== "cancelling");
  const failed = chosen.filter((batch) => isOver(batch) && batch.request_counts.completed < batch.request_counts.total);
  const files = chosen.filter((batch) => batch.output_file_id);
  return html`
    <div class="bulk" role="group" aria-label="Selected batches">
      <strong>${count(chosen.length, "batch", "batches")} selected</strong>
      ${files.length > 0 && html`<${Button} icon="download" act=${() => download(files)}>Download ${count(files.length, "output")}<//>`}
      ${canWrite() && failed.length > 0 && html`<${Button} icon="replay" act=${() => rerun(failed).then(reload)}>Rerun what failed in ${count(failed.length, "batch", "batches")}<//>`}
      ${canWrite() && open.length > 0 && html`<${Button} kind="danger" icon="stop" act=${() => cancel(open, reload)}>Cancel ${count(open.length, "batch", "batches")}<//>`}
      ${chosen.length === 2 && html`<${LinkButton} icon="compare" href=${`#/compare?left=${chosen[1].id}&right=${chosen[0].id}`}>Compare<//>`}
      <${Button} kind="quiet" act=${() => (selected.value = new Set())}>Clear<//>
    </div>
  `;
}

const Nothing = ({ isFiltered }) =>
  isFiltered
    ? html`<${Empty} action=${html`<${LinkButton} href="#/batches">Show all batches<//>`}>No batch matches these filters.<//>`
    : html`<${Empty} action=${canWrite() && html`<${LinkButton} href="#/new" icon="plus" kind="primary">New batch<//>`}
        command="tidemill run requests.jsonl">There is no batch yet. Drop a JSONL file anywhere on this page, or run one in a terminal.<//>`;

export default function Batches() {
  const { query } = place.value;
  const live = useBatches(query);
  const { shown, menu } = useColumns("batches", COLUMNS);
  const { data } = live;
  const isFiltered = FILTERS.some(({ name }) => query.get(name));
  return html`
    <${Page} title="Batches" live=${live} tools=${canWrite() && html`<${LinkButton} href="#/replay" icon="replay">Replay<//>`}>
      <div class="toolbar">
        <${Filters} filters=${FILTERS} />
        <div class="end">${menu}</div>
      </div>
      ${data && html`<${Bulk} rows=${data.rows} reload=${live.reload} />`}
      ${!data && !live.error && html`<div class="table"><${Skeleton} rows=${10} height=${24} /></div>`}
      ${data && (data.rows.length
        ? html`<${Table} label="Batches" columns=${shown} rows=${data.rows} id=${({ id }) => id} selected=${selected}
            card=${(batch) => html`<${BatchCard} batch=${batch} />`} cardHeight=${92} onEnd=${live.more}
            order=${query.get("order")} onOrder=${(order) => setQuery({ order })} />`
        : html`<${Nothing} isFiltered=${isFiltered} />`)}
      ${data?.hasMore && html`<p class="more"><${Button} act=${live.more}>${isFiltered ? "Search further" : "Older batches"}<//></p>`}
    <//>
  `;
}
