/** The settings of the api process that answers, and where each comes from. */

import { call } from "../core/client.js";
import { useLive } from "../core/live.js";
import { place, setQuery } from "../core/route.js";
import { html } from "../core/view.js";
import { Empty } from "../ui/basics.js";
import { LateField, Filters } from "../ui/form.js";
import { Page } from "../ui/page.js";
import { Table } from "../ui/table.js";

const SOURCES = [["environment", "environment"], ["file", "tidemill.toml"], ["default", "default"]];
const FILTERS = [{ name: "source", title: "Source", options: SOURCES }];
const WORDS = Object.fromEntries(SOURCES);
/** A text with its parts between backticks as code. */
const marked = (text) => text.split("`").map((part, place) => (place % 2 ? html`<code>${part}</code>` : part));
const textOf = (value) => (typeof value === "string" ? value : JSON.stringify(value));

const COLUMNS = [
  { id: "name", title: "Setting", width: "minmax(190px, 1fr)", sort: ({ name }) => name, cell: ({ name }) => html`<code>${name}</code>` },
  { id: "value", title: "Value", width: "minmax(150px, 1.2fr)", cell: ({ value }) => html`<span title=${textOf(value)}>${textOf(value)}</span>` },
  { id: "source", title: "From", width: "110px", sort: ({ source }) => source, cell: ({ source }) => WORDS[source] },
  { id: "description", title: "Meaning", width: "minmax(200px, 3fr)", cell: ({ description }) => html`<span class="muted" title=${description.replaceAll("`", "")}>${marked(description)}</span>` },
];

const SettingCard = ({ setting: { name, value, source, description } }) => html`
  <div class="card-line"><code class="clip">${name}</code><span class="small muted">${WORDS[source]}</span></div>
  <div class="clip">${textOf(value)}</div>
  <div class="small muted clip">${marked(description)}</div>
`;

export default function Settings() {
  const { query } = place.value;
  const live = useLive("settings", (stop) => call("GET", "/admin/settings", { signal: stop }), { every: 60 });
  const [source, search] = [query.get("source"), query.get("search") ?? ""];
  const rows = live.data?.data.filter((one) => (!source || one.source === source) && `${one.name} ${one.description}`.toLowerCase().includes(search.toLowerCase()));
  return html`
    <${Page} title="Settings" live=${live}>
      <div class="toolbar">
        <${Filters} filters=${FILTERS} />
        <div class="end jump"><${LateField} id="setting" label="Find" value=${search} onDone=${(text) => setQuery({ search: text })} /></div>
      </div>
      ${rows?.length === 0
        ? html`<${Empty}>No setting matches.<//>`
        : html`<${Table} label="Settings" columns=${COLUMNS} rows=${rows} error=${live.error} id=${({ name }) => name} card=${(setting) => html`<${SettingCard} setting=${setting} />`} cardHeight=${92} />`}
      <p class="muted small note-below">The environment of a process also has what <code>tidemill up</code> or a service manager sets. Changes take effect after a restart; servers and models change while everything runs.</p>
    <//>
  `;
}
