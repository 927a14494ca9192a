/** What failed, by code: how many, a sample, what to do, and a rerun of these lines. */

import { canWrite } from "../../core/client.js";
import { count, number, percent } from "../../core/format.js";
import { address, batchPath } from "../../core/route.js";
import { html } from "../../core/view.js";
import { Button, LinkButton, Skeleton } from "../../ui/basics.js";
import { isOver } from "../shown.js";
import { openRerun } from "./rerun.js";

/** What an operator or the owner of the batch can do about a failure. */
const ADVICE = [
  [({ status }) => status === 401 || status === 403, "The server does not accept the key: an operator should check the server's settings."],
  [({ status }) => status === 404, "The server does not know the model or the path: check the model's settings."],
  [({ status }) => status === 413 || status === 422, "The server does not accept this request: mend these lines, then run them as a new batch."],
  [({ code }) => /context_length|too_long|max_tokens/.test(code), "The prompt is too long: shorten it, or rerun these lines on a model with a longer context."],
  [({ status }) => status === 429, "The server was full until the last attempt: rerun these lines when it has room."],
  [({ status }) => status === 400, "The server refused the request: read its words. Mend these lines and run them as a new batch, or rerun them on another model."],
  [({ status }) => status >= 500, "The server failed: rerun these lines once it is well."],
  [({ code }) => /expired/.test(code), "The window ended first: rerun these lines with a longer window."],
  [({ code }) => /cancel/.test(code), "The batch was cancelled first: rerun these lines if you want them."],
  [({ code }) => /gone|file/.test(code), "A file that the line needs is gone: upload it again."],
  [() => true, "Read the words of the server; a rerun tries these lines again."],
];
const advice = (code, status) => ADVICE.find(([fits]) => fits({ code, status }))[1];

function Group({ batch, group, total }) {
  const { code, status_code: status, count: lines, samples } = group;
  const path = batchPath(batch.id);
  return html`
    <section class="card failure" aria-label=${code}>
      <header>
        <strong class="count">${number(lines)}</strong>
        <div><code class="code">${code}</code>${status ? html` <span class="muted">HTTP ${status}</span>` : ""}
          <p class="muted small">${percent(lines, total)} of what failed</p></div>
        <div class="tools">
          <${LinkButton} href=${address(path, { tab: "lines", code })}>Show lines<//>
          ${canWrite() && isOver(batch) && code !== "other" &&
          html`<${Button} icon="replay" act=${() => openRerun(batch, { codes: [code] })}>Rerun ${lines === 1 ? "this line" : `these ${count(lines, "line")}`}<//>`}
        </div>
      </header>
      <p class="advice">${advice(code, status)}</p>
      <ul class="samples">
        ${samples.map(
          ({ index, custom_id: id, message }) => html`
            <li key=${index}>
              <a href=${address(path, { tab: "lines", line: index + 1 })}><code>${id || `line ${number(index + 1)}`}</code></a>
              <span>${message}</span>
            </li>
          `,
        )}
      </ul>
    </section>
  `;
}

export function Failures({ batch, report, error }) {
  if (!report) return html`<${Skeleton} rows=${3} height=${80} error=${error} />`;
  return html`<div class="failures">${report.data.map((group) => html`<${Group} key=${`${group.code} ${group.status_code}`} ...${{ batch, group, total: report.total }} />`)}</div>`;
}
