/**
 * A test call to a model: a small asynchronous request, so it goes the way of every line, within the limits of the
 * project and into its usage.
 */

import { call } from "../../core/client.js";
import { elapsed } from "../../core/format.js";
import { useLive } from "../../core/live.js";
import { address, batchPath } from "../../core/route.js";
import { html, useEffect, useRef, useState } from "../../core/view.js";
import { Button, Empty, Skeleton } from "../../ui/basics.js";
import { SelectField, TextField } from "../../ui/form.js";
import { openDialog } from "../../ui/overlay.js";
import { State } from "../../ui/state.js";
import { Answer } from "../batch/answer.js";

const TOKENS = 16;
const messages = (text) => [{ role: "user", content: text }];
/** The bodies of the endpoints that take a text. */
const BODIES = {
  "/v1/chat/completions": (text) => ({ messages: messages(text), max_tokens: TOKENS }),
  "/v1/completions": (text) => ({ prompt: text, max_tokens: TOKENS }),
  "/v1/embeddings": (text) => ({ input: text }),
  "/v1/responses": (text) => ({ input: text, max_output_tokens: TOKENS }),
  "/v1/messages": (text) => ({ messages: messages(text), max_tokens: TOKENS }),
};
const pathOf = (endpoint) => endpoint.replace("/v1/", "/async/");
const isOver = ({ status }) => !["queued", "in_progress"].includes(status);

/** Ask for the text, send the request, and show its answer. */
export function openTestCall(model) {
  openDialog(`Test call to ${model}`, (close) => html`<${TestCall} ...${{ model, close }} />`);
}

/** The request and its answer; if the dialog closes before that, the request is cancelled. */
function Sent({ made, sentAt }) {
  const path = pathOf(made.endpoint);
  const { data = made, error } = useLive(`test ${made.id}`, (stop) => call("GET", `${path}/${made.id}`, { signal: stop }), { every: 1, isFinal: isOver });
  const latest = useRef(data);
  const tookMs = useRef(null);
  latest.current = data;
  if (isOver(data)) tookMs.current ??= Date.now() - sentAt;
  useEffect(() => () => {
    if (!isOver(latest.current)) call("POST", `${batchPath(made.id)}/cancel`).catch(() => {});
  }, []);
  if (error) return html`<p class="bad" role="alert">${error.message}</p>`;
  const { status, response, error: fault, waiting } = data;
  if (!isOver(data)) return html`<p role="status">Waiting for the answer …</p>${waiting.map(({ message }) => html`<p key=${message} class="muted">${message}</p>`)}`;
  return html`
    <div class="sent" role="status">
      <p><${State} tone=${status === "completed" ? "done" : "failed"}>${status}<//> after ${elapsed(tookMs.current / 1000)},${" "}
        <a href=${address(batchPath(made.id), { line: 1 })}>as a batch</a> with its server, tokens and cost</p>
      <${Answer} result=${{ response: response && { body: response }, error: fault }} />
    </div>
  `;
}

function TestCall({ model, close }) {
  const { data, error } = useLive("models to test", (stop) => call("GET", "/models", { signal: stop }), { isFinal: () => true });
  const [text, setText] = useState("Say hello.");
  const [endpoint, setEndpoint] = useState(null);
  const [sent, setSent] = useState(null);
  const known = data?.data.find(({ id }) => id === model)?.tidemill.endpoints.filter((one) => BODIES[one]);
  const chosen = endpoint ?? known?.[0];
  async function send() {
    setSent(null);
    const sentAt = Date.now();
    setSent({ sentAt, made: await call("POST", pathOf(chosen), { body: { model, ...BODIES[chosen](text) } }) });
  }
  return html`
    ${error && html`<p class="bad" role="alert">${error.message}</p>`}
    ${!data && !error && html`<${Skeleton} rows=${2} height=${32} />`}
    ${known?.length === 0 && html`<${Empty}>None of its endpoints takes a text.<//>`}
    ${known?.length > 0 && html`
      <div class="options">
        <${SelectField} id="test-endpoint" label="Endpoint" value=${chosen} options=${known.map((one) => [one, one])} onChange=${setEndpoint} />
        <${TextField} id="test-text" label="Text" value=${text} maxlength="2000" onInput=${setText} />
      </div>
      <div class="plan">${sent && html`<${Sent} key=${sent.made.id} ...${sent} />`}</div>
    `}
    <div class="buttons end">
      <${Button} act=${close}>Close<//>
      <${Button} kind="primary" disabled=${!chosen || !text.trim()} act=${send}>Send<//>
    </div>
  `;
}
