/** Who did what to what, and from where. */

import { isOperator } from "../core/client.js";
import { moment, short } from "../core/format.js";
import { useList } from "../core/list.js";
import { place } from "../core/route.js";
import { html } from "../core/view.js";
import { Copy, Empty } from "../ui/basics.js";
import { Filters } from "../ui/form.js";
import { Page } from "../ui/page.js";
import { More, Table, useColumns } from "../ui/table.js";

const ACTIONS = [
  "batch.cancel", "batch.delete", "batch.rerun", "catalog.remove", "catalog.set", "dead_letter.requeue",
  "file.delete", "key.create", "key.refuse", "key.revoke", "replay.create", "session.create", "session.end", "session.refuse",
  "session.switch", "settings.change", "token.create", "upload.cancel",
  "webhook.create", "webhook.delete", "webhook.disable", "webhook.rotate", "webhook.update",
];
const FILTERS = [
  { name: "action", title: "Action", options: ACTIONS.map((action) => [action, action]) },
  { name: "actor", title: "Actor", placeholder: "key_…" },
  { name: "target", title: "Target", placeholder: "batch_…" },
];
const PROJECT = { name: "project", title: "Project", placeholder: "default" };

const pairs = ({ detail }) => Object.entries(detail).map(([name, value]) => `${name}: ${value}`).join(", ") || "–";

const ID = /^[a-z]+[_-](?=.*\d)[0-9A-Za-z]{16,}$/;

/** An id, in short, or a name. */
const Named = ({ text, what }) => (text ? html`<${Copy} text=${text} shown=${ID.test(text) ? short(text) : text} label=${`copy the ${what}`} />` : "–");

const COLUMNS = [
  { id: "at", title: "Time", width: "minmax(max-content, 1fr)", cell: ({ at }) => moment(at) },
  { id: "action", title: "Action", width: "minmax(164px, 0.8fr)", cell: ({ action }) => html`<span title=${action}>${action}</span>` },
  { id: "target", title: "Target", width: "minmax(130px, 1.2fr)", cell: ({ target }) => html`<${Named} text=${target} what="target" />` },
  { id: "detail", title: "Detail", width: "minmax(140px, 2fr)", cell: ({ detail }) => html`<span class="muted" title=${pairs({ detail })}>${pairs({ detail })}</span>` },
  { id: "actor", title: "Actor", width: "minmax(128px, 0.8fr)", yields: 3, cell: ({ actor }) => html`<${Named} text=${actor} what="actor" />` },
  { id: "address", title: "From", width: "minmax(100px, 0.8fr)", yields: 2, cell: ({ address }) => address || "–" },
  { id: "project", title: "Project", width: "minmax(80px, 0.6fr)", yields: 1, cell: ({ project }) => html`<span title=${project}>${project}</span>` },
  { id: "request", title: "Request", width: "minmax(110px, 0.8fr)", isOptional: true, cell: ({ request_id: id }) => html`<${Named} text=${id} what="request id" />` },
];

const ActionCard = ({ entry }) => html`
  <div class="card-line"><strong>${entry.action}</strong><span class="small muted">${moment(entry.at)}</span></div>
  <div class="small clip"><code>${entry.target || "–"}</code></div>
  <div class="small muted clip">by ${entry.actor || "no key"} from ${entry.address || "here"} · ${pairs(entry)}</div>
`;

export default function Audit() {
  const { query } = place.value;
  const filters = isOperator() ? [...FILTERS, PROJECT] : FILTERS;
  const chosen = Object.fromEntries(filters.map(({ name }) => [name, query.get(name)]));
  const live = useList("/admin/audit", chosen);
  const { shown, room, menu } = useColumns("audit", COLUMNS);
  return html`
    <${Page} title="Audit" live=${live}>
      <div class="toolbar"><${Filters} filters=${filters} /><div class="end">${menu}</div></div>
      ${live.rows?.length === 0
        ? html`<${Empty} command="tidemill audit">${Object.values(chosen).some(Boolean) ? "No action matches these filters." : "Nothing was created, cancelled or deleted yet."}<//>`
        : html`<${Table} label="Actions" columns=${shown} room=${room} rows=${live.rows} id=${({ id }) => id} error=${live.error} onEnd=${live.onEnd}
            card=${(entry) => html`<${ActionCard} entry=${entry} />`} cardHeight=${92} />`}
      ${live.hasMore && html`<${More} pages=${live} />`}
    <//>
  `;
}
