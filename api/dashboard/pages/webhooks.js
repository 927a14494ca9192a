/** Webhook endpoints: where events go, whether they arrive, and their deliveries in a panel. */

import { call, canWrite } from "../core/client.js";
import { useList } from "../core/list.js";
import { place, setQuery } from "../core/route.js";
import { html, useState } from "../core/view.js";
import { Banner, Button, Empty, Secret, When } from "../ui/basics.js";
import { TextField } from "../ui/form.js";
import { confirm, openDialog, toast } from "../ui/overlay.js";
import { Page } from "../ui/page.js";
import { State } from "../ui/state.js";
import { More, Table } from "../ui/table.js";
import { Deliveries } from "./webhooks/deliveries.js";

const TYPES = ["batch.completed", "batch.failed", "batch.expired", "batch.cancelled"];
const pathOf = ({ id }) => `/webhook_endpoints/${encodeURIComponent(id)}`;

/** Whether events arrive: a tone and a word. */
function stateOf({ tidemill: { enabled, failing_since: since } }) {
  if (!enabled) return { tone: "failed", word: "disabled" };
  return since ? { tone: "part", word: "failing" } : { tone: "done", word: "enabled" };
}

const COLUMNS = [
  { id: "name", title: "Name", width: "minmax(140px, 1.2fr)", cell: (hook) => html`<a class="row-link clip" href=${`#/webhooks?endpoint=${hook.id}`}>${hook.name}</a>` },
  { id: "state", title: "State", width: "112px", cell: (hook) => html`<${State} tone=${stateOf(hook).tone}>${stateOf(hook).word}<//>` },
  { id: "url", title: "URL", width: "minmax(180px, 2fr)", cell: ({ url }) => html`<code title=${url}>${url}</code>` },
  { id: "types", title: "Events", width: "minmax(150px, 1.6fr)", yields: 2, cell: ({ event_types: types }) => types.map((type) => type.replace("batch.", "")).join(", ") },
  { id: "since", title: "Failing since", width: "120px", cell: ({ tidemill: { failing_since: at } }) => html`<${When} at=${at} />` },
  { id: "created", title: "Created", width: "110px", yields: 1, cell: ({ created_at: at }) => html`<${When} at=${at} />` },
];

const HookCard = ({ hook }) => html`
  <div class="card-line">${COLUMNS[0].cell(hook)}${COLUMNS[1].cell(hook)}</div>
  <div class="small muted clip">${hook.url}</div>
`;

const NewSecret = ({ secret, close }) => html`
  <${Banner} tone="warn">Copy the signing secret now: it is not shown again.<//>
  <${Secret} text=${secret} label="The signing secret" />
  <p class="muted">Receivers verify events with it, as <code>client.webhooks.unwrap</code> of OpenAI's SDKs does.</p>
  <div class="buttons end"><${Button} kind="primary" act=${close}>Done<//></div>
`;

function Edit({ hook, close, reload }) {
  const [values, setValues] = useState({ name: hook?.name ?? "", url: hook?.url ?? "", types: new Set(hook?.event_types ?? TYPES) });
  const [secret, setSecret] = useState(null);
  const set = (some) => setValues((old) => ({ ...old, ...some }));
  function flip(type) {
    const types = new Set(values.types);
    if (!types.delete(type)) types.add(type);
    set({ types });
  }
  async function save() {
    const body = { name: values.name, url: values.url, event_types: TYPES.filter((type) => values.types.has(type)) };
    const made = await call("POST", hook ? pathOf(hook) : "/webhook_endpoints", { body });
    reload();
    if (hook) close();
    else setSecret(made.signing_secret);
  }
  if (secret) return html`<${NewSecret} secret=${secret} close=${close} />`;
  return html`
    <div class="options">
      <${TextField} id="name" label="Name" value=${values.name} maxlength="100" onInput=${(name) => set({ name })} />
      <${TextField} id="url" label="URL" type="url" value=${values.url} placeholder="https://…" maxlength="2048" onInput=${(url) => set({ url })} />
      <fieldset class="field"><legend>Events</legend>
        ${TYPES.map((type) => html`<label class="choice"><input type="checkbox" checked=${values.types.has(type)} onChange=${() => flip(type)} />${type}</label>`)}
      </fieldset>
    </div>
    <div class="buttons end">
      <${Button} act=${close}>Cancel<//>
      <${Button} kind="primary" disabled=${!values.name.trim() || !values.url || !values.types.size} act=${save}>${hook ? "Save" : "Create an endpoint"}<//>
    </div>
  `;
}

const openEdit = (reload, hook) => openDialog(hook ? "Change the endpoint" : "New webhook endpoint", (close) => html`<${Edit} ...${{ hook, close, reload }} />`);

function rotate(hook) {
  confirm({
    title: `Replace the secret of ${hook.name}?`,
    text: "The old secret stays valid for 24 hours, so that receivers can change over.",
    action: "Replace the secret",
    isDanger: false,
    work: async () => {
      const body = { keep_old_secret_active_for_24_hours: true };
      const { signing_secret: secret } = await call("POST", `${pathOf(hook)}/rotate_secret`, { body });
      setTimeout(() => openDialog("New signing secret", (close) => html`<${NewSecret} secret=${secret} close=${close} />`));
    },
  });
}

function remove(hook, reload) {
  confirm({
    title: `Delete ${hook.name}?`,
    text: "Events that wait for it are not sent.",
    action: `Delete ${hook.name}`,
    work: async () => {
      await call("DELETE", pathOf(hook));
      setQuery({ endpoint: null });
      toast(`Deleted ${hook.name}.`);
      reload();
    },
  });
}

async function test(hook) {
  const { status_code: status } = await call("POST", `${pathOf(hook)}/test`, { body: { event_type: hook.event_types[0] } });
  toast(`The receiver replied with ${status}.`, status < 300 ? "good" : "bad");
}

const Tools = ({ hook, reload }) => html`
  <div class="buttons">
    <${Button} act=${() => test(hook)}>Send a test event<//>
    <${Button} act=${() => openEdit(reload, hook)}>Change<//>
    <${Button} act=${() => rotate(hook)}>Replace the secret<//>
    <${Button} kind="danger" act=${() => remove(hook, reload)}>Delete<//>
  </div>
`;

export default function Webhooks() {
  const live = useList("/webhook_endpoints", {}, { change: "webhook_endpoint" });
  const { query } = place.value;
  const hook = live.rows?.find(({ id }) => id === query.get("endpoint"));
  const action = canWrite() && html`<${Button} kind="primary" icon="plus" act=${() => openEdit(live.reload)}>New endpoint<//>`;
  const shown = hook && { ...hook, ...stateOf(hook) };
  return html`
    <${Page} title="Webhooks" live=${live} tools=${action}>
      ${live.rows?.length === 0
        ? html`<${Empty} command="tidemill webhooks create https://hooks.example.com --name production">No endpoint gets an event when a batch ends.<//>`
        : html`<${Table} label="Webhook endpoints" columns=${COLUMNS} rows=${live.rows} id=${({ id }) => id} isCurrent=${({ id }) => id === hook?.id} error=${live.error} onEnd=${live.onEnd}
            card=${(one) => html`<${HookCard} hook=${one} />`} cardHeight=${68} />`}
      ${live.hasMore && html`<${More} pages=${live} />`}
      ${hook && html`<${Deliveries} key=${hook.id} hook=${shown} path=${pathOf(hook)} tools=${canWrite() && html`<${Tools} hook=${hook} reload=${live.reload} />`} />`}
    <//>
  `;
}
