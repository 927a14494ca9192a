/** The lines of a batch that have ended: a virtual table, filters, and a panel with one line. */

import { count, number } from "../../core/format.js";
import { useLive } from "../../core/live.js";
import { pageOf, useMore } from "../../core/paging.js";
import { address, batchPath, go, place, setQuery } from "../../core/route.js";
import { html, useMemo } from "../../core/view.js";
import { Empty, Skeleton } from "../../ui/basics.js";
import { Filters, LateField } from "../../ui/form.js";
import { State } from "../../ui/state.js";
import { More, Table } from "../../ui/table.js";
import { isOver } from "../shown.js";
import { LinePanel } from "./line.js";
import { errorIn, preview, tokensOf } from "./answer.js";

const PAGE = 200;
const FILTERS = [
  { name: "status", title: "State", options: [["completed", "completed"], ["failed", "failed"]] },
  { name: "contains", title: "Text", placeholder: "In the answer" },
  { name: "custom_id", title: "custom_id" },
  { name: "code", title: "Code", placeholder: "rate_limit_exceeded" },
  { name: "server", title: "Server", placeholder: "gpu-1" },
];

/** The HTTP status of a line that is done; the code of one that failed, as Failures and the filter have it (api/batches/report.py). */
export function codeOf({ status, result: { response, error } }) {
  const http = response?.status_code;
  if (status === "completed") return String(http ?? "");
  const found = error ?? errorIn(response?.body);
  const code = [found?.code, found?.type].find((text) => typeof text === "string" && text);
  return code ?? (http ? `http_${http}` : "unknown");
}

const numbered = (text) => (/^0*[1-9]\d*$/.test(text) ? null : "A whole number from 1, without commas.");

/** The next line that is shown, or the one before; null if there is none. */
function neighbour(lines, index, step) {
  const found = step > 0 ? lines.find((line) => line.index > index) : lines.findLast((line) => line.index < index);
  return found ? found.index : null;
}

function columnsOf(href) {
  return [
    { id: "line", title: "Line", width: "72px", isNumber: true, cell: ({ index }) => number(index + 1) },
    { id: "custom_id", title: "custom_id", width: "minmax(120px, 1.2fr)", cell: (line) => html`<a class="row-link" href=${href(line)}><code>${line.result.custom_id || "–"}</code></a>` },
    { id: "state", title: "State", width: "minmax(124px, 0.8fr)", cell: ({ status }) => html`<${State} tone=${status === "failed" ? "failed" : "done"}>${status}<//>` },
    { id: "code", title: "Code", width: "minmax(64px, 0.7fr)", cell: (line) => html`<span title=${codeOf(line)}>${codeOf(line)}</span>` },
    { id: "answer", title: "Answer", width: "minmax(160px, 4fr)", cell: ({ result }) => html`<span class="muted">${preview(result)}</span>` },
    { id: "tokens", title: "Tokens", width: "80px", isNumber: true, yields: 1, cell: ({ result }) => (tokensOf(result) === null ? "–" : number(tokensOf(result).total)) },
  ];
}

const LineCard = ({ line, href }) => html`
  <div class="card-line">
    <a class="row-link clip" href=${href(line)}><code>${line.result.custom_id || number(line.index + 1)}</code></a>
    <${State} tone=${line.status === "failed" ? "failed" : "done"}>${codeOf(line)}<//>
  </div>
  <div class="small muted clip">${preview(line.result)}</div>
`;

/** Put a new first page before the loaded lines behind it: lines of a running batch end in any order. */
function joined(before, page) {
  if (!before || !page.hasMore || before.after <= page.after) return page;
  // More lines may have ended behind the last one since.
  return { ...before, rows: [...page.rows, ...before.rows.filter(({ index }) => index > page.after)], hasMore: true };
}

/** The lines that are loaded, and the next pages. */
function useLines(batch, filter) {
  const key = `lines ${batch.id} ${new URLSearchParams(filter)} ${isOver(batch)}`;
  const load = (options) => pageOf(`${batchPath(batch.id)}/results`, filter, { limit: PAGE, ...options });
  const live = useLive(key, async (signal, before) => {
    const page = await load({ after: filter.after, signal });
    return joined(before(), page);
  }, {
    every: 4,
    isFinal: ({ rows }) => isOver(batch) && rows.length >= Math.min(PAGE, expected(batch, filter)),
  });
  return { ...live, ...useMore(live, ({ after }) => load({ after })) };
}

/** The least number of lines that match a filter once the batch is over; 0 if unknown. */
function expected({ request_counts: { completed, failed } }, { status, after, ...others }) {
  if (after !== undefined || Object.values(others).some(Boolean)) return 0;
  return { completed, failed }[status] ?? completed + failed;
}

/** Why no line is shown, in a search that may go on. */
function emptyText(batch, { status, after, ...others }, data) {
  const first = (after ?? -1) + 2;
  if (data.hasMore) return first > 1 ? `No match from line ${number(first)} to line ${number(data.after + 1)} yet.` : `No match in the first ${count(data.after + 1, "line")} yet.`;
  if (Object.keys(others).length) return "No line matches these filters.";
  const done = expected(batch, { status });
  const which = status ? `has ${status}` : isOver(batch) ? "has run" : "is done so far";
  if (after !== undefined) return `From line ${number(after + 2)} on, no line ${which}.`;
  return done ? `${count(done, "line is", "lines are")} done, and will show here within seconds.` : `No line ${which}.`;
}

export function Lines({ batch }) {
  const { query } = place.value;
  const from = Math.trunc(Number(query.get("from"))) || 0;
  const filter = useMemo(() => {
    const found = {};
    for (const { name } of FILTERS) if (query.get(name)) found[name] = query.get(name);
    if (from > 1) found.after = from - 2;
    return found;
  }, [query.toString()]);
  const live = useLines(batch, filter);
  const { data, error } = live;
  const open = Math.trunc(Number(query.get("line"))) || null;
  const path = batchPath(batch.id);
  const base = { tab: "lines", ...Object.fromEntries(query) };
  const href = ({ index }) => address(path, { ...base, line: index + 1 });
  const columns = useMemo(() => columnsOf(href), [query.toString()]);
  const step = (index) => go(path, { ...base, line: index + 1 });
  const close = () => setQuery({ line: null, tab: "lines" });
  const lines = data?.rows;
  const { after, ...sought } = filter;
  const isSearch = Object.keys(sought).length > 0;
  const beside = (step) => (isSearch ? neighbour(lines ?? [], open - 1, step) : open - 1 + step);
  return html`
    <div class="toolbar">
      <${Filters} filters=${FILTERS} />
      <div class="end jump"><${LateField} id="from" label="From line" value=${query.get("from") ?? ""} inputmode="numeric" check=${numbered} onDone=${(text) => setQuery({ from: text, tab: "lines" })} /></div>
    </div>
    ${error && html`<${Empty}>${error.message}<//>`}
    ${!error && !lines && html`<${Skeleton} rows=${8} height=${24} />`}
    ${lines && lines.length === 0 && html`<${Empty}>${emptyText(batch, filter, data)}<//>`}
    ${lines?.length > 0 &&
    html`<${Table} label="Lines" columns=${columns} rows=${lines} id=${({ index }) => String(index)} onEnd=${live.onEnd}
      total=${expected(batch, filter) || undefined} isCurrent=${({ index }) => index + 1 === open}
      card=${(line) => html`<${LineCard} line=${line} href=${href} />`} cardHeight=${68} />`}
    ${data?.hasMore && html`<${More} pages=${live}>${Object.keys(filter).length ? "Search further" : "More lines"}<//>`}
    ${open && html`<${LinePanel} batch=${batch} index=${open - 1} known=${lines?.find(({ index }) => index + 1 === open)}
      before=${beside(-1)} next=${beside(1)} onStep=${step} onClose=${close} />`}
  `;
}
