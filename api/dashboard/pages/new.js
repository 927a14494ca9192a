/** A new batch: drop a file, see its first lines and what it would cost, start it. */

import { call, canWrite, isLost, make, session, upload } from "../core/client.js";
import { bytes, costRange, count, number } from "../core/format.js";
import { useLive } from "../core/live.js";
import { batchPath, go } from "../core/route.js";
import { html, useEffect, useState } from "../core/view.js";
import { Banner, Button, Copy, Empty, Facts, Section } from "../ui/basics.js";
import { Field, SelectField, TextField } from "../ui/form.js";
import { Icon } from "../ui/icons.js";
import { dropped, toast } from "../ui/overlay.js";
import { Page } from "../ui/page.js";
import { useSay } from "../ui/say.js";
import { Progress } from "../ui/state.js";
import { Table } from "../ui/table.js";
import { check, metadataOf } from "./new/check.js";

const DEDUPE = [["", "As the model's settings say"], ["none", "Send every line"], ["batch", "Ask equal lines once, if the answer is deterministic"], ["all", "Ask all equal lines once"]];
const EXAMPLE = '{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "MODEL", "messages": [{"role": "user", "content": "Hello"}]}}';
const COLUMNS = [
  { id: "line", title: "Line", width: "56px", isNumber: true, cell: ({ line }) => number(line) },
  { id: "id", title: "custom_id", width: "minmax(110px, 1fr)", cell: ({ id }) => html`<code>${id}</code>` },
  { id: "model", title: "Model", width: "minmax(80px, 0.7fr)", cell: ({ model }) => model },
  { id: "text", title: "Request", width: "minmax(150px, 3fr)", cell: ({ text }) => html`<span class="muted">${text}</span>` },
];

const SampleCard = ({ id, model, text }) => html`
  <div class="card-line"><code class="clip">${id}</code><span>${model}</span></div><div class="small muted clip">${text}</div>
`;

const DropZone = ({ onFile, isSmall }) => html`
  <label class=${isSmall ? "drop small-drop" : "drop"}>
    <${Icon} name="upload" />
    <span>${isSmall ? "Choose another file" : html`<strong>Drop a JSONL file anywhere</strong>, or choose one`}</span>
    ${!isSmall && html`<span class="muted small">One request on each line, with custom_id, method, url and body</span>`}
    <input type="file" aria-label="File with a request on each line" accept=".jsonl,.ndjson,.json,.txt"
      onChange=${(event) => event.currentTarget.files[0] && onFile(event.currentTarget.files[0])} />
  </label>
`;

const Faults = ({ faults }) => html`
  <${Banner} tone="bad">
    <p>Tidemill would reject this file. Mend these lines and drop it again:</p>
    <ul class="faults">
      ${faults.map(
        ({ line, field, message, piece }) => html`
          <li><strong>Line ${number(line)}</strong>${field ? html`, <code>${field}</code>` : ""}: ${message}
            ${piece && html`<br /><code class="piece">${piece}</code>`}</li>
        `,
      )}
    </ul>
  <//>
`;

function Estimate({ estimate }) {
  const unknown = estimate.models.filter((model) => !model.is_configured).map((model) => model.model);
  return html`
    <${Facts} entries=${[
      ["Lines", number(estimate.lines)],
      ["Endpoint", html`<code>${estimate.endpoint}</code>`],
      ["Models", estimate.models.map((model) => model.model).join(", ")],
      ["Input tokens", `about ${number(estimate.input_tokens)}`],
      ["Output tokens", estimate.output_tokens_max === null ? "no limit is set" : `at most ${number(estimate.output_tokens_max)}`],
      ["Cost", costRange(estimate.cost)],
    ]} />
    ${estimate.unreadable_lines > 0 && html`<${Banner} tone="bad">${count(estimate.unreadable_lines, "line")} cannot be read: the batch would be rejected, and name them.<//>`}
    ${unknown.length > 0 && html`<${Banner} tone="bad">There is no model ${unknown.join(", ")} here: the batch would be rejected.<//>`}
  `;
}

/** Uploads that batches use, or will in a moment. */
const used = new Set();

/** Delete an upload that no batch uses: another file has replaced it, or the user has left the page. */
const drop = ({ id }) => used.has(id) || call("DELETE", `/files/${encodeURIComponent(id)}`).catch(() => {});

/** The names of all models and their aliases; null if the service does not list them, since its checks come later anyway. */
const modelNames = (signal) =>
  call("GET", "/models", { signal }).then(
    ({ data }) => new Set(data.flatMap(({ id, tidemill }) => [id, ...(tidemill?.aliases ?? [])])),
    () => null,
  );

/** Looks at the chosen file, uploads it if it is well, and estimates it; a newer file replaces an older one. */
function useInput(file, window) {
  const [state, setState] = useState({});
  const [tries, setTries] = useState(0);
  const put = (values) => setState((old) => (old.file === file ? { ...old, ...values } : old));
  useEffect(() => {
    if (!file) return undefined;
    const stop = new AbortController();
    setState({ file });
    (async () => {
      const checked = await check(file, await modelNames(stop.signal));
      put({ checked });
      if (checked.faults.length || stop.signal.aborted) return;
      const made = await upload(file, (share) => put({ share }), stop.signal);
      put({ made });
      if (stop.signal.aborted) drop(made);
      else stop.signal.addEventListener("abort", () => drop(made));
    })().catch((error) => put({ error }));
    return () => stop.abort();
  }, [file, tries]);
  const current = state.file === file ? state : {};
  const { made, checked, error } = current;
  const live = useLive(made ? `estimate ${made.id}` : null, (signal) =>
    call("POST", "/batches/estimate", { body: { input_file_id: made.id, endpoint: checked.endpoint, completion_window: window }, signal }), { isFinal: () => true });
  // The estimate of the window before stays until the new one comes, so that nothing moves.
  useEffect(() => void live.reload(), [window]);
  const retry = error ? () => setTries(tries + 1) : live.reload;
  return { ...current, estimate: live.data, error: error ?? live.error, retry };
}

function Options({ values, set }) {
  const { limits } = session.value;
  return html`
    <div class="options">
      <${TextField} id="name" label="Name" value=${values.name} maxlength="512" onInput=${(name) => set({ name })} />
      <${SelectField} id="completion_window" label="Completion window" value=${values.window} onChange=${(window) => set({ window })}
        options=${limits.completion_windows.map((window) => [window, window])} />
      <${SelectField} id="dedupe" label="Equal lines" value=${values.dedupe} options=${DEDUPE} onChange=${(dedupe) => set({ dedupe })} />
      <${TextField} id="callback_url" label="Callback URL" type="url" value=${values.callback} placeholder="https://…"
        help="Gets a signed event when the batch ends" onInput=${(callback) => set({ callback })} />
      <${Field} id="metadata" label="Metadata" help="One name=value on each line" fault=${metadataOf(values.metadata) === null && "Each line needs a name, = and a value."}>
        <textarea id="metadata" rows="3" dir="auto" onInput=${(event) => set({ metadata: event.currentTarget.value })}>${values.metadata}</textarea>
      <//>
    </div>
  `;
}

async function start({ made, checked }, { name, window, dedupe, callback, metadata }) {
  const pairs = { ...metadataOf(metadata), ...(name.trim() && { name: name.trim() }) };
  used.add(made.id);
  const wanted = {
    input_file_id: made.id,
    endpoint: checked.endpoint,
    completion_window: window,
    ...(Object.keys(pairs).length && { metadata: pairs }),
    ...(dedupe && { dedupe }),
    ...(callback.trim() && { callback_url: callback.trim() }),
  };
  try {
    go(batchPath((await make("/batches", wanted)).id));
  } catch (error) {
    used.delete(made.id);
    throw error;
  }
}

const Actions = ({ state, values, discard }) => html`
  <${Button} kind="quiet" act=${discard}>Discard<//>
  <${Button} kind="primary" disabled=${!state.made || (!state.estimate && !isLost(state.error)) || metadataOf(values.metadata) === null} act=${() => start(state, values)}>
    ${state.estimate ? `Start ${count(state.estimate.lines, "line")}` : "Start"}
  <//>
`;

function Chosen({ file, state, values, set, onFile }) {
  const { checked, share, made, estimate, error, retry } = state;
  const work = made ? "Counting tokens …" : `Uploading ${bytes(file.size)} …`;
  useSay(estimate ? `${count(estimate.lines, "line")}, cost ${costRange(estimate.cost)}` : checked && !checked.faults.length && !error && work);
  return html`
    ${error && html`<${Banner} tone="bad" action=${isLost(error) && html`<${Button} act=${retry}>Try again<//>`}>${error.message}<//>`}
    ${checked?.faults.length > 0 && html`<${Faults} faults=${checked.faults} />`}
    <${Section} title=${file.name} aside=${html`<span class="muted">${bytes(file.size)}</span><${DropZone} onFile=${onFile} isSmall />`}>
      ${checked?.samples.length > 0 && html`<${Table} label="First lines" columns=${COLUMNS} rows=${checked.samples} id=${({ line }) => String(line)}
        card=${(sample) => html`<${SampleCard} ...${sample} />`} cardHeight=${60} />`}
    <//>
    ${checked && !checked.faults.length &&
    html`
      <${Section} title="What it would be">
        ${!estimate && !error && html`<div class="body"><p class="muted">${work}</p>
          <${Progress} label="Uploaded" done=${Math.round((made ? 1 : (share ?? 0)) * 100)} total=${100} /></div>`}
        ${estimate && html`<${Estimate} estimate=${estimate} />`}
      <//>
      <${Section} title="Options"><div class="body"><${Options} values=${values} set=${set} /></div><//>
    `}
  `;
}

const Example = () => html`
  <section class="example" aria-label="A line">
    <p class="muted">A line looks like this; the URL is the same in every line:</p>
    <${Copy} text=${EXAMPLE} label="copy the line" />
  </section>
`;

export default function NewBatch() {
  const [values, setValues] = useState({ name: "", window: session.value.limits.usual_window, dedupe: "", callback: "", metadata: "" });
  const file = dropped.value;
  const state = useInput(file, values.window);
  useEffect(() => () => (dropped.value = null), []);
  const onFile = (chosen) => (dropped.value = chosen);
  function discard() {
    dropped.value = null;
    toast("Discarded.");
  }
  if (!canWrite()) return html`<${Page} title="New batch"><${Empty}>Your key is read-only: it cannot start a batch.<//><//>`;
  return html`
    <${Page} title="New batch" tools=${file && html`<${Actions} ...${{ state, values, discard }} />`}>
      ${file
        ? html`<${Chosen} ...${{ file, state, values, onFile }} set=${(changed) => setValues((old) => ({ ...old, ...changed }))} />`
        : html`<${DropZone} onFile=${onFile} /><${Example} />`}
    <//>
  `;
}
