/** The keys of the project, and how much of its limits it uses. */

import { call, isOperator, session } from "../core/client.js";
import { count, DAY, number } from "../core/format.js";
import { useList } from "../core/list.js";
import { place } from "../core/route.js";
import { html, useState } from "../core/view.js";
import { Banner, Button, Copy, Empty, Secret, When } from "../ui/basics.js";
import { Filters, SelectField, TextField } from "../ui/form.js";
import { confirm, openDialog, toast } from "../ui/overlay.js";
import { Page } from "../ui/page.js";
import { State } from "../ui/state.js";
import { More, Table } from "../ui/table.js";

const LIVES = [["", "Until it is revoked"], [DAY, "A day"], [7 * DAY, "7 days"], [30 * DAY, "30 days"], [365 * DAY, "A year"]].map(([life, words]) => [String(life), words]);
const ROLES = [["read", "read: see everything"], ["write", "write: and run batches"], ["admin", "admin: and manage keys"], ["operator", "operator: and every project"]];
const FILTERS = [{ name: "project", title: "Project", placeholder: "default" }];

function stateOf({ revoked_at: revoked, expires_at: expires }) {
  if (revoked) return { tone: "cancelled", word: "revoked" };
  return expires && expires <= Date.now() / 1000 ? { tone: "cancelled", word: "expired" } : { tone: "done", word: "valid" };
}

const columnsOf = (revoke) => [
  { id: "name", title: "Name", width: "minmax(136px, 1.6fr)", cell: ({ name }) => html`<strong title=${name}>${name}</strong>` },
  { id: "state", title: "State", width: "112px", cell: (key) => html`<${State} tone=${stateOf(key).tone}>${stateOf(key).word}<//>` },
  { id: "role", title: "Role", width: "92px", cell: ({ role }) => role },
  { id: "project", title: "Project", width: "minmax(80px, 0.8fr)", yields: 3, cell: ({ project }) => project },
  { id: "hint", title: "Key", width: "minmax(110px, 0.8fr)", yields: 4, cell: ({ hint }) => html`<code>${hint}</code>` },
  { id: "id", title: "Id", width: "minmax(130px, 1fr)", yields: 1, cell: ({ id }) => html`<${Copy} text=${id} label="copy the id" />` },
  { id: "created", title: "Created", width: "110px", yields: 2, cell: ({ created_at: at }) => html`<${When} at=${at} />` },
  { id: "expires", title: "Expires", width: "120px", cell: ({ expires_at: at }) => (at ? html`<${When} at=${at} />` : "never") },
  { id: "revoke", title: "Revoke", width: "112px", cell: (key) => html`<${Revoke} ...${{ of: key, revoke }} />` },
];

const Revoke = ({ of: key, revoke }) =>
  stateOf(key).word === "valid" && html`<${Button} kind="quiet" aria-label=${`Revoke ${key.name}`} act=${() => revoke(key)}>Revoke<//>`;

const KeyCard = ({ of: key, revoke }) => html`
  <div class="card-line"><strong class="clip">${key.name}</strong><${State} tone=${stateOf(key).tone}>${stateOf(key).word}<//></div>
  <div class="card-line small muted"><span class="clip">${key.role} · ${key.project} · <code>${key.hint}</code></span><${Revoke} ...${{ of: key, revoke }} /></div>
`;

function ask(key, reload) {
  confirm({
    title: `Revoke ${key.name}?`,
    text: "Whoever uses it is refused from now on, at every process within five seconds. It cannot be restored.",
    action: `Revoke ${key.hint}`,
    work: async () => {
      await call("DELETE", `/admin/keys/${encodeURIComponent(key.id)}`);
      toast(`Revoked ${key.name}.`);
      reload();
    },
  });
}

function NewKey({ close, reload }) {
  const [values, setValues] = useState({ name: "", role: "write", life: "", project: session.value.project });
  const [made, setMade] = useState(null);
  const set = (some) => setValues((old) => ({ ...old, ...some }));
  async function create() {
    const { name, role, life, project } = values;
    const body = { name, role, project, ...(life && { expires_in_seconds: Number(life) }) };
    setMade(await call("POST", "/admin/keys", { body }));
    reload();
  }
  if (made)
    return html`
      <${Banner} tone="warn">Copy the key now: it is not shown again.<//>
      <${Secret} text=${made.secret} label="The key" />
      <div class="buttons end"><${Button} kind="primary" act=${close}>Done<//></div>
    `;
  const roles = isOperator() ? ROLES : ROLES.slice(0, -1);
  return html`
    <div class="options">
      <${TextField} id="name" label="Name" value=${values.name} maxlength="100" help="What it is for" onInput=${(name) => set({ name })} />
      <${SelectField} id="role" label="Role" value=${values.role} options=${roles} onChange=${(role) => set({ role })} />
      <${SelectField} id="expires_in_seconds" label="Valid" value=${values.life} options=${LIVES} onChange=${(life) => set({ life })} />
      ${isOperator() && html`<${TextField} id="project" label="Project" value=${values.project} maxlength="64" help="A new name makes a new project" onInput=${(project) => set({ project })} />`}
    </div>
    <div class="buttons end"><${Button} act=${close}>Cancel<//><${Button} kind="primary" disabled=${!values.name.trim()} act=${create}>Create a key<//></div>
  `;
}

export default function Keys() {
  const project = place.value.query.get("project");
  const live = useList("/admin/keys", { project });
  const open = () => openDialog("New key", (close) => html`<${NewKey} close=${close} reload=${live.reload} />`);
  const action = html`<${Button} kind="primary" icon="plus" act=${open}>New key<//>`;
  const revoke = (key) => ask(key, live.reload);
  const valid = live.rows?.filter((key) => stateOf(key).word === "valid").length;
  return html`
    <${Page} title="Keys" live=${live} tools=${action}>
      <div class="toolbar">
        ${isOperator() && html`<${Filters} filters=${FILTERS} />`}
        <span class="end muted">${live.rows && `${count(valid, "valid key")} of ${number(live.rows.length)}${live.hasMore ? "+" : ""}`}</span>
      </div>
      ${live.rows?.length === 0
        ? html`<${Empty} command='tidemill keys create --name "the nightly job"'>There is no key yet besides that of the settings.<//>`
        : html`<${Table} label="Keys" columns=${columnsOf(revoke)} rows=${live.rows} id=${({ id }) => id} error=${live.error} onEnd=${live.onEnd}
            card=${(key) => html`<${KeyCard} ...${{ of: key, revoke }} />`} cardHeight=${84} />`}
      ${live.hasMore && html`<${More} pages=${live} />`}
    <//>
  `;
}
