/** Run lines again, of a batch or of a stretch of the log: first what would run, then the run. */

import { call, canWrite, Fault, isOperator, make, session } from "../core/client.js";
import { costRange, count, number } from "../core/format.js";
import { useLive } from "../core/live.js";
import { address, batchPath, go, place } from "../core/route.js";
import { html, useState } from "../core/view.js";
import { Banner, Button, Empty, Facts, Section, Tabs } from "../ui/basics.js";
import { SelectField, TextField } from "../ui/form.js";
import { Page } from "../ui/page.js";
import { called, isOver } from "./shown.js";

const RECENT = 50;
const HOUR = 3600;
const TABS = [{ id: "batch", title: "Lines of a batch" }, { id: "log", title: "A stretch of the log" }];
const LINES = [
  ["unfinished", "without a successful answer"],
  ["failed", "that failed"],
  ["expired", "that expired"],
  ["cancelled", "that were cancelled"],
  ["all", "all lines"],
  ["codes", "with some error codes"],
];

/** The choices of the forms. */
async function load(stop) {
  const [models, batches] = await Promise.all([
    call("GET", "/models", { signal: stop }),
    call("GET", "/batches", { query: { limit: RECENT }, signal: stop }),
  ]);
  return { models: models.data, batches: batches.data.filter(isOver) };
}

/** A moment as the API takes it, and as a field of a form has it, in UTC. */
const asField = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 19);
const asMoment = (text) => `${text}${text.length === 16 ? ":00" : ""}Z`;
const codesOf = (text) => text.split(/[\s,]+/).filter(Boolean);

function begun() {
  const { query } = place.value;
  const now = Math.floor(Date.now() / 1000);
  return {
    batch: query.get("batch") ?? "", lines: query.get("lines") ?? "unfinished", codes: "", ofModel: "",
    source: query.get("model") ?? "", from: asField(now - HOUR), to: asField(now), endpoint: "", project: "",
    model: "", window: session.value.limits.usual_window,
  };
}

/** The path and the body of the request; null while a field is missing. */
function request(kind, values) {
  const options = { completion_window: values.window, ...(values.model && { model: values.model }) };
  if (kind === "batch") {
    const codes = codesOf(values.codes);
    if (!values.batch.trim() || (values.lines === "codes" && !codes.length)) return null;
    const lines = values.lines === "codes" ? { codes } : values.lines;
    return { path: `${batchPath(values.batch.trim())}/rerun`, body: { lines, ...options, ...(values.ofModel && { of_model: values.ofModel }) } };
  }
  if (!values.source || !values.from || !values.to) return null;
  const source = { model: values.source, from: asMoment(values.from), to: asMoment(values.to) };
  if (values.endpoint) source.endpoint = values.endpoint;
  if (values.project.trim()) source.project = values.project.trim();
  return { path: "/replays", body: { source, ...options } };
}

function BatchFields({ values, set, data }) {
  const batch = data.batches.find(({ id }) => id === values.batch.trim());
  const models = batch?.tidemill.models ?? [];
  return html`
    <${TextField} id="batch" label="Batch" value=${values.batch} list="recent" placeholder="batch_…" onInput=${(text) => set({ batch: text, ofModel: "" })}
      help=${batch ? called(batch) : "An id; the list has the batches that ended last"} />
    <datalist id="recent">${data.batches.map((one) => html`<option key=${one.id} value=${one.id}>${called(one)}</option>`)}</datalist>
    <${SelectField} id="lines" label="Lines" value=${values.lines} options=${LINES} onChange=${(lines) => set({ lines })} />
    ${values.lines === "codes" && html`<${TextField} id="codes" label="Error codes" value=${values.codes} placeholder="429 context_length_exceeded" onInput=${(codes) => set({ codes })} />`}
    ${models.length > 1 && html`<${SelectField} id="of-model" label="Of the model" value=${values.ofModel} options=${[["", "any"], ...models.map(({ model }) => [model, model])]} onChange=${(ofModel) => set({ ofModel })} />`}
  `;
}

function LogFields({ values, set, data }) {
  const model = data.models.find(({ id }) => id === values.source);
  const endpoints = model?.tidemill.endpoints ?? [];
  return html`
    <${SelectField} id="source" label="Requests for" value=${values.source} options=${[["", "choose a model"], ...data.models.map(({ id }) => [id, id])]} onChange=${(source) => set({ source, endpoint: "" })} />
    <${TextField} id="from" label="From (UTC)" type="datetime-local" step="1" value=${values.from} onInput=${(from) => set({ from })} help="When the log got the requests" />
    <${TextField} id="to" label="Until (UTC)" type="datetime-local" step="1" value=${values.to} onInput=${(to) => set({ to })} fault=${values.from && values.to && values.from >= values.to && "It must be later than the start."} />
    <${SelectField} id="endpoint" label="Endpoint" value=${values.endpoint} options=${[["", "the only one of these requests"], ...endpoints.map((one) => [one, one])]} onChange=${(endpoint) => set({ endpoint })} />
    ${isOperator() && html`<${TextField} id="project" label="Project" value=${values.project} placeholder=${session.value.project} help="* for all; the new batch is yours" onInput=${(project) => set({ project })} />`}
  `;
}

/** The plan of the run. */
function Plan({ plan }) {
  return html`
    <div class="body">
      ${plan.is_too_large && html`<${Banner} tone="bad">These are more lines than one batch may have: choose fewer.<//>`}
      ${plan.lost_lines > 0 && html`<${Banner} tone="bad">${count(plan.lost_lines, "large line")} cannot be read any more, since their input file is deleted. Choose a stretch without them.<//>`}
      ${plan.skipped_lines > 0 && html`<${Banner} tone="warn">${count(plan.skipped_lines, "line")} of deleted batches or files will not run.<//>`}
      <${Facts} entries=${[
        ["Lines", number(plan.lines)],
        ["Of batches", plan.batches === undefined ? null : number(plan.batches)],
        ["Endpoint", html`<code>${plan.endpoint}</code>`],
        ["Models", plan.models.map(({ model }) => model).join(", ")],
        ["Tokens in", `about ${number(plan.input_tokens)}`],
        ["Tokens out", plan.output_tokens_max === null ? "not bounded by the lines" : `at most ${number(plan.output_tokens_max)}`],
        ["Cost", costRange(plan.cost)],
      ]} />
    </div>
  `;
}

export default function Replay() {
  const kind = place.value.query.get("of") === "log" ? "log" : "batch";
  const live = useLive("replay", load, { every: 60 });
  const [values, setValues] = useState(begun);
  const [found, setFound] = useState(null);
  const set = (changed) => setValues((old) => ({ ...old, ...changed }));
  if (!canWrite()) return html`<${Page} title="Replay"><${Empty}>Your key is read-only: it cannot start a batch.<//><//>`;
  const wanted = request(kind, values);
  const asked = JSON.stringify(wanted);
  // A plan holds only for the values it was made for.
  const plan = found?.asked === asked ? found.plan : null;
  const isReady = plan && plan.lines > 0 && !plan.is_too_large && !plan.lost_lines;
  async function look() {
    if (!wanted) throw new Fault(400, kind === "batch" ? "Name a batch, and error codes if you choose them." : "Choose a model, a start and an end.");
    setFound({ asked, plan: await call("POST", wanted.path, { body: { ...wanted.body, dry_run: true } }) });
  }
  const start = async () => go(batchPath((await make(wanted.path, wanted.body)).id));
  const Fields = kind === "batch" ? BatchFields : LogFields;
  return html`
    <${Page} title="Replay" live=${live}>
      <${Tabs} label="Lines to run again" tabs=${TABS} current=${kind} href=${(id) => address("/replay", { of: id === "log" ? "log" : null })} />
      ${live.data && html`
        <${Section} title="What to run">
          <div class="body">
            <div class="options">
              <${Fields} ...${{ values, set, data: live.data }} />
              <${SelectField} id="model" label="Run on" value=${values.model} options=${[["", "the same model"], ...live.data.models.map(({ id }) => [id, id])]} onChange=${(model) => set({ model })} />
              <${SelectField} id="completion_window" label="Completion window" value=${values.window} options=${session.value.limits.completion_windows.map((window) => [window, window])} onChange=${(window) => set({ window })} />
            </div>
            <div class="buttons"><${Button} kind=${isReady ? undefined : "primary"} act=${look}>Show what would run<//></div>
          </div>
        <//>
        <div aria-live="polite">
          ${plan && html`
            <${Section} title="What would run"><${Plan} plan=${plan} /><//>
            <div class="buttons"><${Button} kind="primary" disabled=${!isReady} act=${start}>Run ${count(plan.lines, "line")}<//></div>
          `}
        </div>
      `}
    <//>
  `;
}
