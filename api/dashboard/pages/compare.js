/** Two batches side by side, by `custom_id`: the API pairs their lines, a page at a time. */

import { call } from "../core/client.js";
import { cost, count, duration, number } from "../core/format.js";
import { RELOAD, useLive } from "../core/live.js";
import { pageOf, useMore } from "../core/paging.js";
import { address, batchPath, place, setQuery } from "../core/route.js";
import { html, useEffect, useMemo, useState } from "../core/view.js";
import { Banner, Card, Empty, LinkButton, Skeleton } from "../ui/basics.js";
import { SelectField } from "../ui/form.js";
import { Panel } from "../ui/overlay.js";
import { Page } from "../ui/page.js";
import { State } from "../ui/state.js";
import { More, Table } from "../ui/table.js";
import { tokensOf } from "./batch/answer.js";
import { answerOf, differences, OUTCOMES, shown, SHOWN } from "./compare/joined.js";
import { BatchState, called, endedAt, isOver, modelOf, stateOf } from "./shown.js";

const CHOICES = 100;
const PAGE = 100;
/** Requests to count outcomes: each compares thousands of lines, or a large one. */
const STEPS_MAX = 2000;
const TONES = { same: "done", different: "part", first_failed: "failed", second_failed: "failed", both_failed: "failed", only_first: "waiting", only_second: "waiting" };
const CARDS = ["different", "first_failed", "second_failed", "both_failed", "same", "missing"];

function Side({ batch, title }) {
  const { completed, failed } = batch.request_counts;
  const price = batch.tidemill.cost;
  return html`
    <section class="card side" aria-label=${title}>
      <h2>${title}</h2>
      <p class="side-name"><a href=${`#${batchPath(batch.id)}`}>${called(batch)}</a> <${BatchState} batch=${batch} /></p>
      <p>${modelOf(batch)}</p>
      <p class="muted small">
        ${number(completed)} completed, ${number(failed)} failed · ${count(batch.usage?.total_tokens ?? 0, "token")} · cost ${price ? cost(price.total) : "–"}
        ${isOver(batch) ? ` · took ${duration(endedAt(batch) - batch.created_at)}` : ""}
      </p>
    </section>
  `;
}

const Outcome = ({ row }) => html`<${State} tone=${TONES[row.outcome]}>${OUTCOMES[row.outcome]}<//>`;

function columnsOf(href) {
  const tokens = (line) => (line && tokensOf(line.result) ? number(tokensOf(line.result).total) : "–");
  return [
    { id: "id", title: "custom_id", width: "minmax(110px, 1fr)", cell: (row) => html`<a class="row-link" href=${href(row)}><code>${row.custom_id}</code></a>` },
    { id: "outcome", title: "Answers", width: "minmax(204px, 1fr)", cell: (row) => html`<${Outcome} row=${row} />` },
    { id: "first", title: "Left", width: "minmax(120px, 2fr)", cell: ({ first }) => html`<span class="muted">${shown(first)}</span>` },
    { id: "second", title: "Right", width: "minmax(120px, 2fr)", cell: ({ second }) => html`<span class="muted">${shown(second)}</span>` },
    { id: "tokens", title: "Tokens", width: "112px", isNumber: true, cell: ({ first, second }) => `${tokens(first)} | ${tokens(second)}` },
  ];
}

const Words = ({ words }) => html`<div class="prose" tabindex="0">${words.map(({ text, isOwn }, at) => (isOwn ? html`<mark key=${at}>${text}</mark>` : text))}</div>`;

/** The line of a batch with a `custom_id`, searched to the end; null if there is none. */
async function lineOf(batch, id, signal) {
  for (let after = null; ; ) {
    const page = await pageOf(`${batchPath(batch.id)}/results`, { custom_id: id }, { limit: 1, after, signal });
    if (page.rows.length || !page.hasMore) return page.rows[0] ?? null;
    after = page.after;
  }
}

/** The lines of both batches with one `custom_id`, which may not be among those that are loaded. */
function usePair(batches, id, known) {
  const key = id && !known ? `pair ${batches[0].id} ${batches[1].id} ${id}` : null;
  const { data, error } = useLive(key, (stop) => Promise.all(batches.map((batch) => lineOf(batch, id, stop))), { isFinal: () => true });
  return { lines: known ? [known.first, known.second] : data, error };
}

function Both({ batches, id, known }) {
  const { lines, error } = usePair(batches, id, known);
  const [left, right] = lines ?? [];
  const words = left && right ? differences(answerOf(left), answerOf(right)) : [left, right].map((line) => [{ text: line ? answerOf(line) : "It does not have this line.", isOwn: false }]);
  return html`
    <${Panel} title=${id} onClose=${() => setQuery({ line: null })}>
      ${known && html`<${Outcome} row=${known} />`}
      ${!lines && html`<${Skeleton} rows=${4} error=${error} />`}
      ${lines && words.map((side, at) => html`<section key=${at}><h3>${called(batches[at])} · ${modelOf(batches[at])}</h3><${Words} words=${side} /></section>`)}
    <//>
  `;
}

function Choose({ left, right }) {
  const { data, error } = useLive("compare choices", (stop) => call("GET", "/batches", { query: { limit: CHOICES }, signal: stop }), { every: 30 });
  if (!data) return html`<${Skeleton} rows=${2} height=${32} error=${error} />`;
  const options = [["", "Choose a batch"], ...data.data.map((batch) => [batch.id, `${called(batch)} (${modelOf(batch)})`])];
  const withOld = (id) => (id && !options.some(([one]) => one === id) ? [...options, [id, id]] : options);
  const choose = (side) => (id) => setQuery({ [side]: id, line: null, show: null });
  return html`
    <div class="choose">
      <${SelectField} id="left" label="Left" value=${left} options=${withOld(left)} onChange=${choose("left")} />
      <${SelectField} id="right" label="Right" value=${right} options=${withOld(right)} onChange=${choose("right")} />
    </div>
  `;
}

/** How many lines have each outcome: several requests count them, and the sum grows. */
function useCounts(path, other) {
  const [found, setFound] = useState({ counts: {}, isWhole: false });
  useEffect(() => {
    const stop = new AbortController();
    (async () => {
      const counts = {};
      let after = null;
      for (let step = 0; step < STEPS_MAX; step += 1) {
        const page = await call("GET", path, { query: { with: other, limit: 0, after }, signal: stop.signal });
        for (const [outcome, lines] of Object.entries(page.counts)) counts[outcome] = (counts[outcome] ?? 0) + lines;
        after = page.next_after;
        setFound({ counts: { ...counts }, isWhole: !page.has_more });
        if (!page.has_more) return;
      }
    })().catch((error) => stop.signal.aborted || setFound((old) => ({ ...old, error })));
    return () => stop.abort();
  }, [path, other]);
  return found;
}

/** The pairs of a filter that are loaded, and the next pages. */
function usePairs(path, other, show) {
  const query = { with: other, outcome: SHOWN[show][1].join() };
  const load = (options) => pageOf(path, query, { limit: PAGE, ...options });
  const live = useLive(`pairs ${path} ${other} ${show}`, (signal) => load({ signal }), { isFinal: () => true });
  return { ...live, ...useMore(live, ({ after }) => load({ after })) };
}

/** How far the comparison is. */
function Compared({ lines, isWhole, error }) {
  if (error) return html`<p class="end bad" role="alert">${count(lines, "line")} compared, then: ${error.message}</p>`;
  return html`<p class="end muted" role="status">${isWhole ? `${count(lines, "line")} compared` : `Comparing: ${count(lines, "line")} so far …`}</p>`;
}

const sum = (counts, outcomes) => outcomes.reduce((lines, name) => lines + (counts[name] ?? 0), 0);

function Result({ batches }) {
  const { query } = place.value;
  const [left, right] = batches;
  const path = `${batchPath(left.id)}/compare`;
  // A rerun has a part of the lines, so "only in one" says nothing.
  const isRerun = left.tidemill.rerun_of === right.id || right.tidemill.rerun_of === left.id;
  const show = Object.hasOwn(SHOWN, query.get("show")) ? query.get("show") : isRerun ? "both" : "all";
  const { counts, isWhole, error: fault } = useCounts(path, right.id);
  const pairs = usePairs(path, right.id, show);
  const { data, error } = pairs;
  const base = Object.fromEntries(query);
  const href = (row) => address("/compare", { ...base, line: row.custom_id });
  const columns = useMemo(() => columnsOf(href), [query.toString()]);
  const open = query.get("line");
  const isOpen = (row) => row.custom_id === open;
  const compared = sum(counts, Object.keys(OUTCOMES));
  const figure = (name) => html`<${Card} key=${name} title=${SHOWN[name][0]} value=${number(sum(counts, SHOWN[name][1]))}
    note=${html`<a href=${address("/compare", { ...base, show: name, line: null })}>Show them</a>`} />`;
  return html`
    <div class="cards-row">${CARDS.map(figure)}</div>
    <div class="toolbar">
      <${SelectField} id="show" label="Lines" value=${show} options=${Object.entries(SHOWN).map(([name, [words]]) => [name, words])} onChange=${(name) => setQuery({ show: name, line: null })} />
      <${Compared} lines=${compared} isWhole=${isWhole} error=${fault} />
    </div>
    ${error && html`<${Empty}>${error.message}<//>`}
    ${!data && !error && html`<${Skeleton} rows=${8} height=${36} />`}
    ${data?.rows.length > 0 &&
    html`<${Table} label="Lines of both" columns=${columns} rows=${data.rows} id=${({ custom_id: id, outcome }) => `${outcome} ${id}`} isCurrent=${isOpen} onEnd=${pairs.onEnd}
      card=${(row) => html`<div class="card-line"><a class="row-link clip" href=${href(row)}><code>${row.custom_id}</code></a><${Outcome} row=${row} /></div>
        <div class="small muted clip">${shown(row.first)}</div><div class="small muted clip">${shown(row.second)}</div>`} />`}
    ${data && !data.rows.length && !data.hasMore &&
    html`<${Empty} action=${show !== "all" && html`<${LinkButton} href=${address("/compare", { left: left.id, right: right.id, show: "all" })}>Show all lines<//>`}>No line is like this.<//>`}
    ${data?.hasMore && !data.rows.length && html`<${Empty}>No line is like this so far, and the search is not over.<//>`}
    ${data?.hasMore && html`<${More} pages=${pairs}>${show === "all" ? "More lines" : "Search further"}<//>`}
    ${open && html`<${Both} key=${open} batches=${batches} id=${open} known=${data?.rows.find(isOpen)} />`}
  `;
}

const Running = ({ batch }) => html`
  <${Banner}><a href=${`#${batchPath(batch.id)}`}>${called(batch)}</a> is not over: ${stateOf(batch).word}. The lines of both are compared once it has ended.<//>
`;

export default function Compare() {
  const { query } = place.value;
  const ids = [query.get("left") ?? "", query.get("right") ?? ""];
  const [left, right] = ids;
  const isChosen = left && right && left !== right;
  const live = useLive(isChosen ? `compare ${left} ${right}` : null, (stop) => Promise.all(ids.map((id) => call("GET", batchPath(id), { signal: stop }))), {
    every: 10,
    isFinal: (batches) => batches.every(isOver),
    onChange: (type, object) => (type === "batch" && ids.includes(object.id) ? RELOAD : undefined),
  });
  const batches = live.data;
  return html`
    <${Page} title="Compare batches" live=${live}>
      <${Choose} left=${left} right=${right} />
      ${!isChosen && html`<${Empty}>Choose two batches whose lines have the same custom_id, for example one of each model.<//>`}
      ${isChosen && !batches && !live.error && html`<${Skeleton} rows=${8} height=${36} />`}
      ${isChosen && batches && html`
        <div class="sides"><${Side} batch=${batches[0]} title="Left" /><${Side} batch=${batches[1]} title="Right" /></div>
        ${batches.every(isOver)
          ? html`<${Result} key=${`${left} ${right}`} batches=${batches} />`
          : batches.filter((batch) => !isOver(batch)).map((batch) => html`<${Running} key=${batch.id} batch=${batch} />`)}
      `}
    <//>
  `;
}
