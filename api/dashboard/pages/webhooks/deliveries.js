/** The panel of a webhook endpoint: its state, what one can do, and its deliveries. */

import { call, canWrite } from "../../core/client.js";
import { count, elapsed } from "../../core/format.js";
import { useList } from "../../core/list.js";
import { batchPath, place, setQuery } from "../../core/route.js";
import { html } from "../../core/view.js";
import { Button, Copy, Empty, Facts, Skeleton, When } from "../../ui/basics.js";
import { SelectField } from "../../ui/form.js";
import { Panel, toast } from "../../ui/overlay.js";
import { State } from "../../ui/state.js";
import { More } from "../../ui/table.js";

const TONES = { pending: "waiting", succeeded: "done", failed: "failed" };
/** Words for the errors of attempts that the receiver did not answer. */
const FAULTS = { connection: "no connection", timeout: "no reply" };
const STATES = [["", "all"], ["pending", "pending"], ["succeeded", "succeeded"], ["failed", "failed"]];

/** The receiver's reply to the last attempt. */
function reply({ last_attempt: last, attempts }) {
  if (!last) return "not called yet";
  const said = last.status_code ? `status ${last.status_code} in` : `${FAULTS[last.error] ?? last.error} after`;
  return `${said} ${elapsed(last.seconds)}, ${count(attempts, "attempt")}`;
}

function Delivery({ path, delivery, reload }) {
  const { id, state, event_type: type, event_id: event, batch_id: batch, is_test: isTest, created_at: made, next_attempt_at: next } = delivery;
  async function resend() {
    await call("POST", `${path}/deliveries/${encodeURIComponent(id)}/resend`);
    toast("The event is sent again.");
    reload();
  }
  return html`
    <li class="delivery">
      <div class="card-line">
        <${State} tone=${TONES[state]}>${type}${isTest ? " (test)" : ""}<//>
        ${state !== "pending" && canWrite() && html`<${Button} kind="quiet" icon="replay" act=${resend}>Resend<//>`}
      </div>
      <div class="small muted">
        <${When} at=${made} /> · ${reply(delivery)}${next && state === "pending" ? html` · next attempt <${When} at=${next} />` : ""}
      </div>
      <div class="small"><a href=${`#${batchPath(batch)}`}>Its batch</a> · <${Copy} text=${event} label="copy the event's id" /></div>
    </li>
  `;
}

/** @param {{hook: object, path: string, tools: any}} props `hook` has a `tone` and a `word` for its state. */
export function Deliveries({ hook, path, tools }) {
  const state = place.value.query.get("deliveries") ?? "";
  const live = useList(`${path}/deliveries`, { state });
  const { failing_since: since, disabled_at: disabled } = hook.tidemill;
  return html`
    <${Panel} title=${hook.name} onClose=${() => setQuery({ endpoint: null, deliveries: null })}>
      <section>
        <${Facts} entries=${[
          ["State", html`<${State} tone=${hook.tone}>${hook.word}<//>`],
          ["URL", html`<code>${hook.url}</code>`],
          ["Secret", html`<code>${hook.signing_secret_hint}</code>`],
          ["Failing since", since && html`<${When} at=${since} />`],
          ["Disabled", disabled && html`<${When} at=${disabled} />`],
        ]} />
        ${!hook.tidemill.enabled && html`<p class="muted">It failed for five days. Change it to enable it again, then resend what it missed.</p>`}
        ${tools}
      </section>
      <section>
        <div class="card-line"><h2>Deliveries</h2>
          <${SelectField} id="deliveries" label="State" value=${state} options=${STATES} onChange=${(deliveries) => setQuery({ deliveries })} /></div>
        ${!live.rows && html`<${Skeleton} rows=${4} height=${44} error=${live.error} />`}
        ${live.rows?.length === 0 && html`<${Empty}>${state ? "No delivery is in this state." : "No event was sent yet."}<//>`}
        <ul class="deliveries">${live.rows?.map((one) => html`<${Delivery} key=${one.id} ...${{ path, delivery: one, reload: live.reload }} />`)}</ul>
        ${live.hasMore && html`<${More} pages=${live}>Show older ones<//>`}
      </section>
    <//>
  `;
}
