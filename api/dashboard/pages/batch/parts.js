/** The smaller tabs of a batch: timeline, receipt, request and raw. */

import { call, content } from "../../core/client.js";
import { bytes, cost, count, duration, moment, number } from "../../core/format.js";
import { useLive } from "../../core/live.js";
import { batchPath } from "../../core/route.js";
import { html } from "../../core/view.js";
import { Copy, Empty, Facts, Json, Section, Skeleton, When } from "../../ui/basics.js";
import { State } from "../../ui/state.js";
import { Table } from "../../ui/table.js";

const HEAD_BYTES = 256 << 10;
const EVENTS = {
  created: ["done", "Created"],
  in_progress: ["running", "Validated; lines run"],
  cancelling: ["cancelled", "Cancelling"],
  finalizing: ["running", "Lines done; files are written"],
  completed: ["done", "Completed"],
  failed: ["failed", "Input rejected"],
  expired: ["failed", "Expired"],
  cancelled: ["cancelled", "Cancelled"],
  deadline: ["waiting", "Deadline"],
};

export function Timeline({ batch }) {
  const key = `timeline ${batch.id} ${batch.status}`;
  const { data, error } = useLive(key, (stop) => call("GET", `${batchPath(batch.id)}/timeline`, { signal: stop }), { isFinal: () => true });
  if (!data) return html`<${Skeleton} rows=${4} height=${32} error=${error} />`;
  const row = ({ event, at }, place) => {
    const [tone, words] = EVENTS[event] ?? ["waiting", event];
    const before = data.data[place - 1]?.at;
    return html`
      <li key=${event}>
        <${State} tone=${tone}>${words}<//>
        <span class="muted">${before !== undefined && at > before ? `after ${duration(at - before)}` : ""}</span>
        <span class="muted"><${When} at=${at} /></span>
        <span>${moment(at)}</span>
      </li>
    `;
  };
  return html`<ol class="card timeline">${data.data.map(row)}</ol>`;
}

export function Receipt({ batch }) {
  const { receipt: found, output_copy: copy } = batch.tidemill;
  const isWhole = found.missing === 0 && found.double === 0;
  const sum = (file) =>
    file && html`${count(file.lines, "line")}, ${bytes(file.bytes)}<br /><${Copy} text=${file.sha256} label="copy the SHA-256" />`;
  return html`
    <${Section} title="Receipt">
      <p>
        <${State} tone=${isWhole ? "done" : "failed"}>
          ${count(found.lines, "line")} in = ${number(found.output?.lines ?? 0)} out + ${count(found.errors?.lines ?? 0, "error")};
          ${" "}${number(found.missing)} missing, ${number(found.double)} duplicate
        <//>
      </p>
      <${Facts} entries=${[["Output, with its SHA-256", sum(found.output)], ["Errors, with their SHA-256", sum(found.errors)], ["Copies of equal lines", found.copies ? number(found.copies) : null],
        ["Copied to", copy?.status === "done" ? html`<${Copy} text=${copy.uri} label="copy the address" />` : null]]} />
    <//>
  `;
}

/** The first line of the input, or null if the file is gone. */
async function firstLine(batch, stop) {
  const text = await (await content(batch.input_file_id, { signal: stop, range: [0, HEAD_BYTES - 1] })).text();
  const line = text.split("\n").find((found) => found.trim());
  try {
    return { line: JSON.parse(line) };
  } catch {
    return { line: null };
  }
}

/** The values of a body without its content, which differs from line to line. */
function parameters(body) {
  const content_fields = ["messages", "input", "prompt", "documents", "query"];
  return Object.entries(body ?? {})
    .filter(([name]) => !content_fields.includes(name))
    .map(([name, value]) => [name, typeof value === "string" ? value : html`<code>${JSON.stringify(value)}</code>`]);
}

export function Request({ batch }) {
  const { data, error } = useLive(`input ${batch.id}`, (stop) => firstLine(batch, stop), { isFinal: () => true });
  const { metadata, tidemill } = batch;
  return html`
    <${Section} title="Batch">
      <${Facts} entries=${[
        ["Endpoint", html`<code>${batch.endpoint}</code>`],
        ["Window", batch.completion_window],
        ["Input file", html`<${Copy} text=${batch.input_file_id} label="copy the id" />`],
        ["Stream", tidemill.stream],
        ["Callback", tidemill.callback_url],
        ["Files copied to", tidemill.output_uri],
        ["Equal lines", tidemill.dedupe],
        ...Object.entries(metadata ?? {}).map(([name, value]) => [`metadata.${name}`, value]),
      ]} />
    <//>
    <${Section} title="First line">
      ${error && html`<${Empty}>${error.message}<//>`}
      ${!error && !data && html`<${Skeleton} rows=${4} />`}
      ${data && !data.line && html`<${Empty}>The first line is not JSON, or is very long. Download the input to see it.<//>`}
      ${data?.line && html`<${Facts} entries=${parameters(data.line.body)} /><${Json} value=${data.line} />`}
    <//>
  `;
}

const MODEL_COLUMNS = [
  { id: "model", title: "Model", width: "minmax(110px, 2fr)", cell: ({ model }) => model },
  ...["completed", "failed", "total"].map((name) => ({
    id: name,
    title: { completed: "Done", failed: "Failed", total: "Lines" }[name],
    width: "minmax(56px, 1fr)",
    isNumber: true,
    cell: ({ request_counts: counts }) => number(counts[name]),
  })),
  { id: "in", title: "Tokens in", width: "minmax(64px, 1fr)", isNumber: true, cell: ({ usage }) => (usage ? number(usage.input_tokens) : "–") },
  { id: "out", title: "Tokens out", width: "minmax(64px, 1fr)", isNumber: true, cell: ({ usage }) => (usage ? number(usage.output_tokens) : "–") },
  { id: "cost", title: "Cost", width: "minmax(48px, 1fr)", isNumber: true, cell: ({ cost: price }) => (price ? cost(price.total) : "–") },
];

export const Models = ({ shares }) => html`
  <${Section} title="Models"><${Table} label="Models" columns=${MODEL_COLUMNS} rows=${shares} id=${({ model }) => model} /><//>
`;

export const Raw = ({ batch }) => html`
  <${Section} title="As the API answers" aside=${html`<${Copy} text=${`curl -H "Authorization: Bearer $OPENAI_API_KEY" ${new URL(`../v1${batchPath(batch.id)}`, location.href.split("#")[0])}`} shown="Copy as cURL" label="" />`}>
    <${Json} value=${batch} />
  <//>
`;

