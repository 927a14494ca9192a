/** The batches, newest first: filters in the address, live, and actions on those that are selected. */

import { canWrite, make, save } from "../core/client.js";
import { age, cost, count, DAY, moment, percent } from "../core/format.js";
import { RELOAD, useLive } from "../core/live.js";
import { merged, pageOf, useMore } from "../core/paging.js";
import { batchPath, place, setQuery } from "../core/route.js";
import { html, signal, useEffect } from "../core/view.js";
import { Button, Empty, LinkButton } from "../ui/basics.js";
import { Filters } from "../ui/form.js";
import { confirm, toast } from "../ui/overlay.js";
import { Page } from "../ui/page.js";
import { More, Table, useColumns } from "../ui/table.js";
import { BatchCard, BatchName, BatchProgress, BatchState, called, cancel, counts, ending, isOver, modelOf, outputsOf, Slack, TROUBLES } from "./shown.js";

const PAGE = 100;
const FRESH = 50;
const STATUSES = ["validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"];
const CREATED = [["1", "Last day"], ["7", "Last 7 days"], ["30", "Last 30 days"]];
const TROUBLE = [["stalled", "stalled or held"], ["late", "late"], ["failures", "with failures"]];
const UNPAIRED = "It needs a name, = and a value.";
const selected = signal(new Set());

const COLUMNS = [
  { id: "name", title: "Name", width: "minmax(210px, 2.4fr)", cell: (batch) => html`<${BatchName} batch=${batch} />` },
  { id: "state", title: "State", width: "minmax(168px, 1fr)", cell: (batch) => html`<${BatchState} batch=${batch} />` },
  { id: "model", title: "Model", width: "minmax(104px, 1fr)", yields: 4, cell: (batch) => html`<span title=${modelOf(batch)}>${modelOf(batch)}</span>` },
  { id: "progress", title: "Progress", width: "minmax(72px, 0.9fr)", yields: 1, cell: (batch) => html`<${BatchProgress} batch=${batch} />` },
  { id: "lines", title: "Lines", width: "minmax(150px, 1fr)", isNumber: true, cell: counts },
  { id: "end", title: "End", width: "minmax(156px, 1.2fr)", yields: 6, cell: (batch) => html`<span title=${ending(batch)}>${ending(batch)}</span>` },
  { id: "slack", title: "Slack", width: "minmax(136px, 0.8fr)", yields: 3, cell: (batch) => html`<${Slack} batch=${batch} />` },
  { id: "cost", title: "Cost", width: "72px", yields: 2, isNumber: true, cell: ({ tidemill: { cost: price, progress } }) => (price ?? progress?.cost ? cost((price ?? progress.cost).total) : "–") },
  { id: "created", title: "Age", width: "72px", yields: 5, isNumber: true, order: true, cell: ({ created_at: at }) => html`<time title=${moment(at)}>${age(Date.now() / 1000 - at)}</time>` },
  { id: "endpoint", title: "Endpoint", width: "minmax(140px, 1fr)", isOptional: true, cell: ({ endpoint }) => html`<code>${endpoint}</code>` },
  { id: "window", title: "Window", width: "72px", isOptional: true, cell: ({ completion_window: text }) => text },
  { id: "done", title: "Done", width: "64px", isOptional: true, isNumber: true, cell: ({ request_counts: { total, completed, failed } }) => percent(completed + failed, total) },
];

const FILTERS = [
  { name: "status", title: "State", options: STATUSES.map((status) => [status, status.replace("_", " ")]) },
  { name: "trouble", title: "Trouble", options: TROUBLE },
  { name: "created", title: "Created", options: CREATED },
  { name: "model", title: "Model" },
  { name: "search", title: "Search", placeholder: "Id, name or metadata" },
  { name: "endpoint", title: "Endpoint", placeholder: "/v1/embeddings" },
  { name: "metadata", title: "Metadata", placeholder: "team=finance", check: (text) => (pairOf(text) ? null : UNPAIRED) },
  { name: "single", title: "Kind", options: [["true", "Single requests"]] },
];

/** The name and the value of a metadata filter; null if it has not both. */
const pairOf = (text) => /^([^=]+)=(.+)$/s.exec(text)?.slice(1) ?? null;

/** The query of the API for the filters of the address. */
function wanted(query) {
  const found = Object.fromEntries(["status", "trouble", "model", "search", "endpoint", "single", "order"].map((name) => [name, query.get(name)]));
  const days = Number(query.get("created"));
  // Whole hours, so that the list keeps its cache key.
  if (days) found.created_after = Math.floor(Date.now() / 3_600_000) * 3_600 - days * DAY;
  const [name, value] = pairOf(query.get("metadata") ?? "") ?? [];
  if (name) found[`metadata[${name}]`] = value;
  return found;
}

/** Load as many of the first rows as were loaded before, page by page. */
async function renewed(api, rows, signal) {
  let found = { rows: [], after: null, hasMore: true };
  let page;
  do {
    page = await pageOf("/batches", api, { limit: PAGE, after: found.after, signal });
    found = { ...page, rows: [...found.rows, ...page.rows] };
  } while (page.hasMore && page.rows.length && found.rows.length < rows);
  return found;
}

/** All batches of a filter that are loaded, and the next pages; a filter with a fault has none. */
function useBatches(query, fault) {
  const api = wanted(query);
  const key = fault ? null : `batches ${new URLSearchParams(Object.entries(api).filter(([, value]) => value))}`;
  const live = useLive(key, async (stop, before, isWhole) => {
    if (isWhole || !before()) return renewed(api, before()?.rows.length ?? 0, stop);
    const page = await pageOf("/batches", api, { limit: FRESH, signal: stop });
    return merged(before(), page);
  }, { onChange: changed(api) });
  return { ...live, ...useMore(live, ({ after }) => pageOf("/batches", api, { limit: PAGE, after })) };
}

/** Update a batch in the list, or remove it if it no longer matches; an unknown one may add a row. */
const changed = ({ status, trouble }) => (type, object, data) => {
  if (type !== "batch" || !data) return undefined;
  const isOut = object.deleted || (status && object.status !== status) || (trouble && !TROUBLES[trouble]?.(object));
  if (!data.rows.some(({ id }) => id === object.id)) return isOut ? undefined : RELOAD;
  const rows = isOut ? data.rows.filter(({ id }) => id !== object.id) : data.rows.map((batch) => (batch.id === object.id ? object : batch));
  return { ...data, rows };
};

/** After a confirmation, rerun the failed lines of each batch; a refusal does not stop the others. */
function rerun(batches, after) {
  const what = count(batches.length, "batch", "batches");
  confirm({
    title: `Rerun what failed in ${what}?`,
    text: "Lines without a successful answer run again, those of each batch as a new batch.",
    action: `Rerun ${what}`,
    isDanger: false,
    work: async () => {
      const faults = [];
      for (const { id } of batches) await rerunOne(id).catch(({ message }) => faults.push(message));
      const started = `Started ${count(batches.length - faults.length, "rerun")} of what did not succeed`;
      if (faults.length) toast(`${started}; ${count(faults.length, "batch was", "batches were")} refused: ${[...new Set(faults)].join(" ")}`, "bad");
      else toast(`${started}.`);
      after();
    },
  });
}

async function rerunOne(id) {
  await make(`${batchPath(id)}/rerun`, { lines: "unfinished" });
  selected.value = new Set([...selected.value].filter((other) => other !== id));
}

function Bulk({ rows, reload }) {
  const chosen = rows.filter(({ id }) => selected.value.has(id));
  if (!chosen.length) return null;
  const open = chosen.filter((batch) => !isOver(batch) && batch.status !== "cancelling");
  const failed = chosen.filter((batch) => isOver(batch) && batch.request_counts.completed < batch.request_counts.total);
  const files = chosen.flatMap(outputsOf);
  return html`
    <div class="bulk" role="group" aria-label="Selected batches">
      <strong>${count(chosen.length, "batch", "batches")} selected</strong>
      ${files.length > 0 && html`<${Button} icon="download" act=${() => files.forEach(([, file, name]) => save(file, name))}>Download ${count(files.length, "output")}<//>`}
      ${canWrite() && failed.length > 0 && html`<${Button} icon="replay" act=${() => rerun(failed, reload)}>Rerun what failed in ${count(failed.length, "batch", "batches")}<//>`}
      ${canWrite() && open.length > 0 && html`<${Button} kind="danger" icon="stop" act=${() => cancel(open, reload)}>Cancel ${count(open.length, "batch", "batches")}<//>`}
      ${chosen.length === 2 && html`<${LinkButton} icon="compare" href=${`#/compare?left=${chosen[1].id}&right=${chosen[0].id}`}>Compare<//>`}
      <${Button} kind="quiet" act=${() => (selected.value = new Set())}>Clear<//>
    </div>
  `;
}

const Nothing = ({ isFiltered, hasMore }) =>
  hasMore
    ? html`<${Empty}>No batch has matched yet, and the search is not over.<//>`
    : isFiltered
    ? html`<${Empty} action=${html`<${LinkButton} href="#/batches">Show all batches<//>`}>No batch matches these filters.<//>`
    : html`<${Empty} action=${canWrite() && html`<${LinkButton} href="#/new" icon="plus" kind="primary">New batch<//>`}
        command="tidemill run requests.jsonl">There is no batch yet. Drop a JSONL file anywhere on this page, or run one in a terminal.<//>`;

export default function Batches() {
  const { query } = place.value;
  const metadata = query.get("metadata");
  const fault = metadata && !pairOf(metadata) ? UNPAIRED : null;
  const live = useBatches(query, fault);
  const { shown, room, menu } = useColumns("batches", COLUMNS);
  const { data } = live;
  // What is selected is in sight: another filter, page or project begins anew.
  useEffect(() => () => (selected.value = new Set()), [live.key]);
  const isFiltered = FILTERS.some(({ name }) => query.get(name));
  return html`
    <${Page} title="Batches" live=${live} tools=${canWrite() && html`<${LinkButton} href="#/replay" icon="replay">Replay<//>`}>
      <div class="toolbar">
        <${Filters} filters=${FILTERS} />
        <div class="end">${menu}</div>
      </div>
      ${data && html`<${Bulk} rows=${data.rows} reload=${live.reload} />`}
      ${fault && html`<${Empty}>The filter Metadata is not complete. ${fault}<//>`}
      ${!fault && (!data || data.rows.length
        ? html`<${Table} label="Batches" columns=${shown} room=${room} rows=${data?.rows} error=${live.error} id=${({ id }) => id} selected=${selected} name=${called}
            card=${(batch) => html`<${BatchCard} batch=${batch} />`} cardHeight=${92} onEnd=${live.onEnd}
            order=${query.get("order")} onOrder=${(order) => setQuery({ order })} />`
        : html`<${Nothing} isFiltered=${isFiltered} hasMore=${data.hasMore} />`)}
      ${data?.hasMore && html`<${More} pages=${live}>${isFiltered ? "Search further" : "Older batches"}<//>`}
    <//>
  `;
}
