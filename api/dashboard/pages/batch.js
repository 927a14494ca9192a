/** One batch: is it moving, when is it done, what failed and why, where is the file. */

import { call, canWrite, contentAddress, isOperator, session, switchProject } from "../core/client.js";
import { cost, count, distance, duration, moment, number, percent, rate, short } from "../core/format.js";
import { RELOAD, useLive } from "../core/live.js";
import { address, batchPath, place } from "../core/route.js";
import { html, useEffect, useRef } from "../core/view.js";
import { Banner, Button, Card, Copy, Empty, LinkButton, Menu, Section, Skeleton, Tabs, When } from "../ui/basics.js";
import { Chart, Spark } from "../ui/chart.js";
import { toast } from "../ui/overlay.js";
import { notice, Page } from "../ui/page.js";
import { Failures } from "./batch/failures.js";
import { Lines } from "./batch/lines.js";
import { Refused } from "./batch/refused.js";
import { openRerun } from "./batch/rerun.js";
import { Models, Raw, Receipt, Request, Timeline } from "./batch/parts.js";
import { useSeries } from "./series.js";
import { bandOf, BatchProgress, BatchState, called, cancel, endedAt, isHeld, isOver, isUsual, modelOf, outputsOf, slackOf, stateOf, waits, waitText } from "./shown.js";

/** Pixels of the chart. */
const HEIGHT = 180;
const LIMIT_UNIT = "calls at a time";

/** Tell that a watched batch has ended: by the icon of a hidden tab, and by a word on the page. */
function useEndNotice(batch) {
  const before = useRef(null);
  useEffect(() => {
    if (!batch) return;
    if (before.current && !isOver(before.current) && isOver(batch)) {
      notice();
      toast(`${called(batch)}: ${stateOf(batch).word}.`);
    }
    before.current = batch;
  }, [batch]);
}

/** The failed lines by code, loaded again when their number has changed. */
function useErrors(batch) {
  const failed = batch?.request_counts.failed ?? 0;
  const isWanted = batch && (failed > 0 || ["expired", "cancelled", "failed"].includes(batch.status));
  const key = isWanted ? `errors ${batch.id} ${batch.status}` : null;
  const live = useLive(key, (stop) => call("GET", `${batchPath(batch.id)}/errors`, { signal: stop }), {
    every: 5,
    isFinal: () => isOver(batch),
  });
  return live;
}

function Title({ batch }) {
  const { model, endpoint } = { model: modelOf(batch), endpoint: batch.endpoint };
  return html`
    <span class="batch-title" title=${called(batch)}>${called(batch)}</span>
    <span class="batch-sub">
      <${BatchState} batch=${batch} /><${Copy} text=${batch.id} shown=${short(batch.id)} label="copy the id" />
      ${model !== "–" && html`<span>${model}</span>`}<code>${endpoint}</code>
    </span>
  `;
}

/** All files of a batch, like `outputsOf`. */
function filesOf(batch) {
  const { id, error_file_id: errors, input_file_id: input } = batch;
  return [...outputsOf(batch), ["Failed lines", errors, `${id}_errors.jsonl`], ["Input", input, `${id}_input.jsonl`]].filter(([, file]) => file);
}

function Download({ batch }) {
  return html`
    <${Menu} label="Download" icon="download" kind=${batch.output_file_id ? "primary" : ""}>
      ${filesOf(batch).map(([title, file, name]) => html`<a key=${file} href=${contentAddress(file)} download=${name}>${title}<small>JSONL</small></a>`)}
    <//>
  `;
}

function Actions({ batch, report, reload }) {
  const unfinished = report?.unfinished ?? 0;
  const kind = unfinished === batch.request_counts.failed && batch.status === "completed" ? "failed" : "unfinished";
  return html`
    <${Download} batch=${batch} />
    ${canWrite() && isOver(batch) && batch.request_counts.total > 0 &&
    html`<${Button} icon="replay" act=${() => openRerun(batch)}>${unfinished ? `Rerun ${count(unfinished, `${kind} line`)}` : "Rerun"}<//>`}
    ${isOver(batch) && batch.output_file_id && html`<${LinkButton} icon="compare" href=${address("/compare", { left: batch.tidemill.rerun_of ?? batch.id, right: batch.tidemill.rerun_of ? batch.id : "" })}>Compare<//>`}
    ${canWrite() && !isOver(batch) && batch.status !== "cancelling" &&
    html`<${Button} kind="danger" icon="stop" act=${() => cancel([batch], reload)}>Cancel<//>`}
  `;
}

/** Why lines wait, for operators with a link to the server or the model that can be resumed or changed. */
function Wait({ wait, model }) {
  const name = wait.server?.split("@")[0];
  const to = name ? { name } : wait.reason === "paused" ? { kind: "model", name: model } : null;
  const action = to && isOperator() && html`<${LinkButton} href=${address("/servers", to)}>Show ${to.name}<//>`;
  return html`<${Banner} tone=${isUsual(wait) || isHeld(wait) ? "info" : "warn"} action=${action}><p>${waitText(wait)}</p><//>`;
}

/** Why it waits, and what else its owner should know. */
function Notes({ batch }) {
  const { at_risk: risk, recovered, fault, output_copy: copy } = batch.tidemill;
  const refused = batch.errors?.data ?? [];
  return html`
    ${waits(batch).map((wait) => html`<${Wait} key=${wait.reason + wait.server} wait=${wait} model=${batch.model} />`)}
    ${batch.status === "expired" && batch.tidemill.waiting.length > 0 &&
    html`<${Banner} tone="bad">The window ended first. ${batch.tidemill.waiting[0].message}<//>`}
    ${risk && html`<${Banner} tone="bad">The log may drop records that this batch needs: ${distance(risk)}.<//>`}
    ${fault && html`<${Banner} tone="bad">${count(fault.records, "record")} of this batch became dead letters: ${fault.reason}<//>`}
    ${recovered && html`<${Banner}>Parts of its results were lost in the store, and were read from the log again.<//>`}
    ${copy?.status === "failed" && html`<${Banner} tone="bad">Its files are here, and not in <code>${copy.uri}</code>: ${copy.reason}<//>`}
    ${refused.length > 0 && html`<${Refused} faults=${refused} />`}
  `;
}

/** The failed lines; of a batch that ended early, those that did not run, too. */
function Failed({ batch }) {
  const { total, completed, failed } = batch.request_counts;
  const left = isOver(batch) ? total - completed - failed : 0;
  const tone = failed || (left && batch.status !== "cancelled") ? "bad" : "";
  const note = failed ? `${percent(failed, completed + failed)} of what is done` : left ? `${percent(left, total)} of all lines` : total ? "No line has failed" : "No line has run";
  if (left && !failed) return html`<${Card} title="Unfinished" value=${number(left)} tone=${tone} note=${note} />`;
  return html`<${Card} title="Failed" value=${number(failed)} tone=${tone} note=${left ? `${number(left)} more unfinished` : note} />`;
}

function Figures({ batch, rates }) {
  const { total, completed, failed } = batch.request_counts;
  const { progress, copies } = batch.tidemill;
  const price = batch.tidemill.cost ?? progress?.cost;
  const usage = batch.usage ?? progress?.usage;
  const speed = progress?.lines_per_second;
  const slack = slackOf(batch);
  const took = isOver(batch) ? endedAt(batch) - batch.created_at : null;
  return html`
    <div class="cards-row">
      <${Card} title="Done" value=${percent(completed + failed, total)} note=${`${number(completed + failed)} of ${count(total, "line")}`}>
        <${BatchProgress} batch=${batch} isBig />
      <//>
      <${Failed} batch=${batch} />
      <${Card} title=${isOver(batch) ? "Mean rate" : "Rate"} note=${copies ? `${count(copies, "copy", "copies")} of equal lines` : undefined}
        value=${took ? rate((completed + failed) / Math.max(1, took)) : typeof speed === "number" ? rate(speed) : "–"}>
        ${rates.length > 1 && html`<${Spark} values=${rates} label="Lines a second over time" />`}
      <//>
      <${Card} title=${isOver(batch) ? "Took" : "Done in"} value=${isOver(batch) ? duration(took) : (bandOf(batch) ?? "not known yet")}
        note=${isOver(batch) ? html`Ended <${When} at=${endedAt(batch)} />` : html`Created <${When} at=${batch.created_at} />`} />
      <${Card} title=${isOver(batch) ? "Window" : "Deadline"} value=${isOver(batch) ? batch.completion_window : slack.text} tone=${slack.tone}
        note=${`${isOver(batch) ? "Until" : "At"} ${moment(batch.expires_at)}`} />
      <${Card} title=${isOver(batch) ? "Cost" : "Cost so far"} value=${price ? cost(price.total) : "–"}
        note=${usage ? `${count(usage.input_tokens, "token")} in, ${number(usage.output_tokens)} out` : isOver(batch) ? "No line was answered" : "Known with the first answers"} />
    </div>
  `;
}

function Throughput({ batch, series }) {
  const isShort = series.times.length < 2;
  if (isOver(batch) && isShort) return null;
  return html`
    <${Section} title="Throughput">
      ${isShort
        ? html`<p class="muted" style=${{ minHeight: `${HEIGHT}px` }}>The chart starts soon after the first lines end.</p>`
        : html`<${Chart} title="Throughput" unit="lines/s" times=${series.times} height=${HEIGHT} series=${series.stack} right=${LIMIT_UNIT} />`}
    <//>
  `;
}

const TABS = { failures: Failures, lines: Lines, timeline: Timeline, receipt: Receipt, request: Request, raw: Raw };

function tabsOf(batch, { data: report, error }) {
  const { completed, failed } = batch.request_counts;
  return [
    ...((report ? report.total : error) && batch.status !== "failed" ? [{ id: "failures", title: "Failures", count: report && number(report.total) }] : []),
    { id: "lines", title: "Lines", count: number(completed + failed) },
    { id: "timeline", title: "Timeline" },
    ...(batch.tidemill.receipt ? [{ id: "receipt", title: "Receipt" }] : []),
    { id: "request", title: "Request" },
    { id: "raw", title: "Raw" },
  ];
}

function Related({ batch }) {
  const { rerun_of: origin, reruns } = batch.tidemill;
  if (!origin && !reruns.length) return null;
  const link = (id) => html`<a href=${`#${batchPath(id)}`} title=${id}>${short(id)}</a> `;
  return html`
    <p class="related muted">
      ${origin && html`Runs lines of ${link(origin)} again. <a href=${address("/compare", { left: origin, right: batch.id })}>Compare them</a>. `}
      ${reruns.length > 0 && html`Rerun as ${reruns.map(link)}`}
    </p>
  `;
}

function Shown({ batch, live }) {
  const errors = useErrors(batch);
  const report = errors.data;
  const series = useSeries(batch);
  useEndNotice(batch);
  const { query } = place.value;
  const tabs = tabsOf(batch, errors);
  const asked = query.get("tab") ?? (["line", "status", "code", "contains"].some((name) => query.has(name)) ? "lines" : null);
  const tab = tabs.find(({ id }) => id === asked)?.id ?? tabs[0].id;
  const Part = TABS[tab];
  const { word } = stateOf(batch);
  const { total, completed, failed } = batch.request_counts;
  const far = isOver(batch) || !total ? word : percent(completed + failed, total);
  return html`
    <${Page} title=${called(batch)} tab=${`${far} · ${called(batch)}`} live=${live} heading=${html`<${Title} batch=${batch} />`}
      tools=${html`<${Actions} batch=${batch} report=${report} reload=${live.reload} />`}>
      <${Notes} batch=${batch} />
      <${Related} batch=${batch} />
      <${Figures} batch=${batch} rates=${series.rates} />
      <${Throughput} batch=${batch} series=${series} />
      ${batch.tidemill.models?.length > 0 && html`<${Models} shares=${batch.tidemill.models} />`}
      <${Tabs} label="Parts of the batch" tabs=${tabs} current=${tab} href=${(id) => address(batchPath(batch.id), { tab: id })} />
      <${Part} batch=${batch} report=${report} error=${errors.error} />
    <//>
  `;
}

const PROJECTS_SHOWN = 8;

/** A batch is in one project, and an address may come from another one. */
function Elsewhere({ error }) {
  const { project, projects } = session.value;
  const others = error.status === 404 ? projects.filter((one) => one !== project) : [];
  const actions = html`
    <div class="buttons">
      <${LinkButton} href="#/batches">All batches<//>
      ${others.slice(0, PROJECTS_SHOWN).map((one) => html`<${Button} key=${one} act=${() => switchProject(one)}>Look in ${one}<//>`)}
    </div>
  `;
  return html`<${Empty} action=${actions}>${error.message} You are in the project <strong>${project}</strong>.<//>`;
}

export default function Batch({ params: [id] }) {
  const live = useLive(`batch ${id}`, (stop) => call("GET", batchPath(id), { signal: stop }), {
    isFinal: isOver,
    onChange: (type, object) => (type === "batch" && object.id === id ? (object.deleted ? RELOAD : object) : undefined),
  });
  const { data, error } = live;
  if (data) return html`<${Shown} batch=${data} live=${live} />`;
  if (error && [400, 404].includes(error.status))
    return html`
      <${Page} title="There is no such batch"><${Elsewhere} error=${error} /><//>
    `;
  return html`<${Page} title="Batch" live=${live}>${!error && html`<${Skeleton} rows=${4} height=${92} />`}<//>`;
}
