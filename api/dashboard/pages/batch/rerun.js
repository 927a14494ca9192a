/** The dialog that runs lines of a batch again: which lines, on which model, and what it would cost. */

import { call, isLost, make, session } from "../../core/client.js";
import { costRange, count } from "../../core/format.js";
import { useLive } from "../../core/live.js";
import { batchPath, go } from "../../core/route.js";
import { html, useEffect, useState } from "../../core/view.js";
import { Button } from "../../ui/basics.js";
import { SelectField } from "../../ui/form.js";
import { openDialog } from "../../ui/overlay.js";

const KINDS = [["unfinished", "All without an answer: failed, expired, cancelled"], ["failed", "Lines that failed"], ["all", "All lines"]];

/**
 * Ask which lines to run again, and how; then go to the new batch.
 * @param {object} batch
 * @param {{codes: string[]}} [lines] Lines with these error codes; else the user chooses.
 */
export function openRerun(batch, lines) {
  openDialog("Rerun lines", (close) => html`<${Rerun} ...${{ batch, lines, close }} />`);
}

/** The plan of a rerun, as a sentence. */
function Plan({ data: plan, error, reload }) {
  if (error) return html`<p class="bad" role="alert">${error.message}</p>${isLost(error) && html`<${Button} act=${reload}>Try again<//>`}`;
  if (!plan) return html`<p class="muted">Counting …</p>`;
  return html`<p>${count(plan.lines, "line")}, about ${count(plan.input_tokens, "token")} in${plan.cost.is_free ? "" : `, cost ${costRange(plan.cost)}`}.</p>`;
}

function Rerun({ batch, lines, close }) {
  const [kind, setKind] = useState("unfinished");
  const [model, setModel] = useState("");
  const [window, setWindow] = useState("");
  const [models, setModels] = useState([]);
  const body = { lines: lines ?? kind, ...(model && { model }), ...(window && { completion_window: window }) };
  const path = `${batchPath(batch.id)}/rerun`;
  useEffect(() => {
    call("GET", "/models").then(({ data }) => setModels(data.filter(({ tidemill }) => tidemill.endpoints.includes(batch.endpoint))), () => {});
  }, []);
  const plan = useLive(`rerun ${batch.id} ${JSON.stringify(body)}`, (signal) =>
    call("POST", path, { body: { ...body, dry_run: true }, signal }), { isFinal: () => true });
  async function start() {
    const made = await make(path, body);
    close();
    go(batchPath(made.id));
  }
  return html`
    <div class="options">
      ${lines ? html`<p>Lines with the code <code>${lines.codes.join(", ")}</code></p>` : html`<${SelectField} id="lines" label="Lines" value=${kind} options=${KINDS} onChange=${setKind} />`}
      <${SelectField} id="model" label="Model" value=${model} onChange=${setModel}
        options=${[["", "The same as before"], ...models.map(({ id }) => [id, id])]} />
      <${SelectField} id="completion_window" label="Completion window" value=${window} onChange=${setWindow}
        options=${[["", `The same as before: ${batch.completion_window}`], ...session.value.limits.completion_windows.map((one) => [one, one])]} />
    </div>
    <div class="plan" aria-live="polite"><${Plan} ...${plan} /></div>
    <div class="buttons end">
      <${Button} act=${close}>Close<//>
      <${Button} kind="primary" disabled=${!plan.data && !isLost(plan.error)} act=${start}>Rerun ${plan.data ? count(plan.data.lines, "line") : "lines"}<//>
    </div>
  `;
}
