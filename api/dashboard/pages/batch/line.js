/** One line in the side panel: what was asked, what was answered, and how. */

import { call, content, Fault, isOperator } from "../../core/client.js";
import { count, elapsed, number } from "../../core/format.js";
import { useLive } from "../../core/live.js";
import { address, batchPath } from "../../core/route.js";
import { html, useState } from "../../core/view.js";
import { Button, Copy, Facts, Json, Skeleton } from "../../ui/basics.js";
import { Panel } from "../../ui/overlay.js";
import { useSay } from "../../ui/say.js";
import { State } from "../../ui/state.js";
import { Answer, tokensOf } from "./answer.js";
import { texts } from "./texts.js";
import { codeOf } from "./lines.js";

/** Characters of a line; a longer one would freeze the page. */
const LINE_MAX = 4 << 20;

/** The n-th line of an input file, which is read from the start up to the line. */
async function inputLine(fileId, index, stop) {
  const answer = await content(fileId, { signal: stop });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let left = index;
  for (;;) {
    const { value, done } = await reader.read();
    const lines = (rest + (value ?? "")).split("\n");
    rest = done ? "" : lines.pop();
    const found = lines.filter((line) => line.trim());
    if (left < found.length) {
      await reader.cancel();
      return parsed(found[left]);
    }
    left -= found.length;
    if (done) throw new Fault(404, "The input has no such line.");
    if (rest.length > LINE_MAX) throw new Fault(413, `${left ? "A line before this one" : "The line"} is too long to show here. Download the input to see it.`);
  }
}

function parsed(line) {
  try {
    return JSON.parse(line);
  } catch {
    throw new Fault(400, "The line is not JSON.");
  }
}

/** A text as one word of a shell, whatever the line's author wrote. */
const word = (value) => `'${String(value).replaceAll("'", "'\\''")}'`;

/** A command that sends the request of a line to a server. */
function asCurl({ method, url, body }) {
  return `curl -X ${word(method)} "$SERVER"${word(String(url).replace(/^\/v1/, ""))} -H "Content-Type: application/json" -H "Authorization: Bearer $KEY" -d ${word(JSON.stringify(body))}`;
}

/** The prompt as messages, or the field of the body that has it. */
function Prompt({ body }) {
  if (Array.isArray(body?.messages))
    return body.messages.map(
      (message, place) => html`
        <div key=${place} class="message">
          <h3>${String(message?.role ?? "message")}</h3>
          <div class="prose" tabindex="0">${texts({ content: message?.content }).join("\n") || JSON.stringify(message)}</div>
        </div>
      `,
    );
  const text = body?.input ?? body?.prompt;
  return typeof text === "string" ? html`<div class="prose" tabindex="0">${text}</div>` : html`<${Json} value=${body} />`;
}

/** A server that has several addresses has one page. */
const ServerName = ({ name }) => (isOperator() ? html`<a href=${address("/servers", { name: name.split("@")[0] })}>${name}</a>` : name);

/** How the line was called, as far as its result says. */
function Call({ line }) {
  const { result } = line;
  const tokens = tokensOf(result);
  const { response, tidemill } = result;
  return html`
    <${Facts} entries=${[
      ["State", html`<${State} tone=${line.status === "failed" ? "failed" : "done"}>${line.status}<//>`],
      ["Code", line.status === "failed" && codeOf(line)],
      ["HTTP status", response?.status_code],
      ["Tokens", tokens && `${number(tokens.into)} in, ${number(tokens.out)} out`],
      ["Model", response?.body?.model ? String(response.body.model) : null],
      ["Calls", tidemill?.attempts && html`${count(tidemill.attempts, "call")}${tidemill.attempts > 1 && ", the last counts"}`],
      ["Server", tidemill?.server && html`<${ServerName} name=${tidemill.server} />`],
      ["Took", tidemill?.seconds !== undefined && elapsed(tidemill.seconds)],
      ["Copy of", tidemill?.copy_of],
      ["Request of the server", response?.request_id && html`<${Copy} text=${String(response.request_id)} label="copy the id" />`],
    ]} />
  `;
}

/** `before` and `next` are the indices of the lines that the buttons show. */
export function LinePanel({ batch, index, known, before, next, onStep, onClose }) {
  const [isRaw, setRaw] = useState(false);
  useSay(`Line ${number(index + 1)}`);
  const path = `${batchPath(batch.id)}/results`;
  const live = useLive(`line ${batch.id} ${index}`, async (stop) => {
    if (known) return known;
    const page = await call("GET", path, { query: { after: index - 1, limit: 1 }, signal: stop });
    return page.data.find((line) => line.index === index) ?? null;
  }, { every: 5, isFinal: (line) => line !== null });
  const isThere = index >= 0 && (index < batch.request_counts.total || !batch.request_counts.total);
  const input = useLive(isThere ? `input ${batch.id} ${index}` : null, (stop) => inputLine(batch.input_file_id, index, stop), { isFinal: () => true });
  const line = known ?? live.data;
  const title = line?.result.custom_id ?? input.data?.custom_id ?? `Line ${number(index + 1)}`;
  const isLine = (place) => place !== null && place >= 0 && place < batch.request_counts.total;
  const tools = html`
    <${Button} kind="quiet" icon="left" label="Line before" disabled=${!isLine(before)} act=${() => onStep(before)} />
    <${Button} kind="quiet" icon="right" label="Next line" disabled=${!isLine(next)} act=${() => onStep(next)} />
    <${Button} kind="quiet" act=${() => setRaw(!isRaw)}>${isRaw ? "Rendered" : "Raw"}<//>
  `;
  return html`
    <${Panel} title=${String(title)} onClose=${onClose} tools=${tools}>
      <p class="muted">Line ${number(index + 1)} of ${count(batch.request_counts.total, "line")}</p>
      ${live.data === null && !known && html`<p>This line has no result yet.</p>`}
      ${live.error && !line && html`<p class="bad" role="alert">${live.error.message}</p>`}
      ${line && html`<${Call} line=${line} />`}
      <section>
        <h3>Request</h3>
        ${!isThere && html`<p class="muted">The batch has no such line.</p>`}
        ${isThere && !input.data && html`<${Skeleton} rows=${3} error=${input.error} />`}
        ${input.data && (isRaw ? html`<${Json} value=${input.data} />` : html`<${Prompt} body=${input.data.body} />`)}
        ${input.data && html`<p><${Copy} text=${asCurl(input.data)} shown="Copy as cURL" label="" /></p>`}
      </section>
      ${line && html`
        <section>
          <h3>Answer</h3>
          ${isRaw ? html`<${Json} value=${line.result} />` : html`<${Answer} result=${line.result} />`}
          <p><${Copy} text=${texts(line.result.response?.body).join("\n") || JSON.stringify(line.result)} shown="Copy the answer" label="" /></p>
        </section>
      `}
    <//>
  `;
}
