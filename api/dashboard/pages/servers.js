/** Servers and models, for operators: what they do now, whether they can be used, and how to change them. */

import { call } from "../core/client.js";
import { number } from "../core/format.js";
import { RELOAD, useLive } from "../core/live.js";
import { address, place, setQuery } from "../core/route.js";
import { html } from "../core/view.js";
import { Banner, Empty, Tabs } from "../ui/basics.js";
import { Page } from "../ui/page.js";
import { Table, useColumns } from "../ui/table.js";
import { CARD, FIRST_BYTE, IN_FLIGHT, LINES, nameColumn, QUEUED, REFUSED, renewed, ServerCard, STATE, stateOf, TIMES, TOKENS, WAITING } from "./servers/load.js";
import { EntryPanel } from "./servers/panel.js";

const LIMIT = 1000;
const KINDS = [{ id: "server", title: "Servers" }, { id: "model", title: "Models" }];

const listed = (names) => html`<span title=${names.join(", ")}>${names.join(", ") || "–"}</span>`;
const SERVERS_MODELS = { id: "models", title: "Models", width: "minmax(120px, 1.2fr)", isOptional: true, cell: ({ used_by: models }) => listed(models) };
const URL = { id: "url", title: "URL", width: "minmax(180px, 1.6fr)", isOptional: true, cell: ({ settings }) => html`<code title=${settings.url}>${settings.url}</code>` };

const COLUMNS = {
  server: [nameColumn("Server"), STATE, IN_FLIGHT, WAITING, QUEUED, REFUSED, LINES, TOKENS, TIMES, FIRST_BYTE, SERVERS_MODELS, URL],
  model: [
    nameColumn("Model"),
    STATE,
    { id: "calls", title: "Calls", width: "72px", isNumber: true, sort: ({ load }) => load?.in_flight ?? -1, cell: ({ load }) => (load ? number(load.in_flight) : "–") },
    WAITING,
    LINES,
    { id: "servers", title: "Servers", width: "minmax(140px, 1.6fr)", cell: ({ used_by: servers }) => listed(servers) },
    { id: "aliases", title: "Aliases", width: "minmax(120px, 1fr)", yields: 1, cell: ({ settings: { aliases = [] } }) => listed(aliases) },
    { id: "inputs", title: "Inputs of a call", width: "120px", isNumber: true, isOptional: true, cell: ({ settings }) => number(settings.inputs_per_call ?? 1) },
  ],
};

const Nothing = ({ kind }) =>
  kind === "server"
    ? html`<${Empty} command="tidemill servers add gpu-1 url=http://127.0.0.1:8000/v1">There is no server yet.<//>`
    : html`<${Empty} command=${`tidemill models add qwen3-8b 'servers=["gpu-1"]'`}>There is no model yet.<//>`;

async function load(stop) {
  const [servers, models] = await Promise.all(["servers", "models"].map((kind) => call("GET", `/admin/${kind}`, { query: { limit: LIMIT }, signal: stop })));
  return { server: servers.data, model: models.data, isCut: servers.has_more || models.has_more };
}

/** The load of an event; the names of the rows stay as they are. */
function changed(type, object, data) {
  if (type === "catalog") return RELOAD;
  return type === "load" && data ? { ...data, server: renewed(data.server, object.servers), model: renewed(data.model, object.models) } : undefined;
}

export default function Servers() {
  const { query } = place.value;
  const kind = query.get("kind") === "model" ? "model" : "server";
  const live = useLive("servers", load, { every: 10, onChange: changed, wantsLoad: true });
  const { shown, room, menu } = useColumns(`${kind}s`, COLUMNS[kind]);
  const rows = live.data?.[kind];
  const entry = rows?.find(({ id }) => id === query.get("name"));
  const tabs = KINDS.map((tab) => ({ ...tab, count: live.data && number(live.data[tab.id].length) }));
  const faulty = [...(live.data?.server ?? []), ...(live.data?.model ?? [])].filter(({ fault, removed }) => fault && !removed);
  return html`
    <${Page} title="Models and servers" live=${live} tools=${menu}>
      ${faulty.map((one) => html`<${Banner} key=${one.id} tone="bad"><strong>${one.id}</strong> cannot be used: ${one.fault}<//>`)}
      ${live.data?.isCut && html`<${Banner}>Only the first ${number(LIMIT)} are shown; <code>tidemill servers list</code> has all.<//>`}
      <${Tabs} label="Kinds" tabs=${tabs} current=${kind} href=${(id) => address("/servers", { kind: id })} />
      ${rows?.length === 0
        ? html`<${Nothing} kind=${kind} />`
        : html`<${Table} label=${kind === "server" ? "Servers" : "Models"} columns=${shown} room=${room} rows=${rows} error=${live.error} id=${({ id }) => id} isCurrent=${({ id }) => id === entry?.id}
            card=${kind === "server" ? (one) => html`<${ServerCard} entry=${one} />` : undefined} cardHeight=${kind === "server" ? CARD : undefined} />`}
      ${entry && html`<${EntryPanel} key=${`${kind} ${entry.id}`} entry=${entry} state=${stateOf(entry)} reload=${live.reload} onClose=${() => setQuery({ name: null })} />`}
    <//>
  `;
}
