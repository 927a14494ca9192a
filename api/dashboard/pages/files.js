/** The files of the project: inputs, and what batches wrote. */

import { call, canWrite, save } from "../core/client.js";
import { bytes, count, short } from "../core/format.js";
import { useList } from "../core/list.js";
import { useLive } from "../core/live.js";
import { address, batchPath, place } from "../core/route.js";
import { html, signal, useEffect } from "../core/view.js";
import { Button, Copy, Empty, LinkButton, When } from "../ui/basics.js";
import { Filters } from "../ui/form.js";
import { confirm, toast } from "../ui/overlay.js";
import { Page } from "../ui/page.js";
import { More, Table, useColumns } from "../ui/table.js";

const PURPOSES = [["batch", "Input"], ["batch_output", "Results"], ["user_data", "Data that lines name"]];
const FILTERS = [{ name: "purpose", title: "Purpose", options: PURPOSES }];
const WORDS = { ...Object.fromEntries(PURPOSES), output: "Output", error: "Errors" };
const RESULTS = /^((?:msg)?batch_[0-9A-Za-z]+)_(output|error)/;
const BATCHES = 100;
const selected = signal(new Set());

const download = (file) => save(file.id, file.filename);

/** What a file is called, what it is, and the batch that wrote it. */
function factsOf({ filename, purpose }, names) {
  const [, batch, kind] = (purpose === "batch_output" && RESULTS.exec(filename)) || [];
  return { name: batch ? (names.get(batch) ?? `Batch ${short(batch)}`) : filename, what: WORDS[kind] ?? WORDS[purpose] ?? purpose, batch };
}

/** The names of the newest batches: files of results are named after ids. */
function useNames() {
  const { data } = useLive("names of batches", async (stop) => (await call("GET", "/batches", { query: { limit: BATCHES }, signal: stop })).data, { every: 60 });
  return new Map(data?.map(({ id, tidemill: { name } }) => [id, name]));
}

const Name = ({ file, names }) => {
  const { name, batch } = factsOf(file, names);
  return batch
    ? html`<a class="clip" href=${`#${batchPath(batch)}`} title=${file.filename}>${name}</a>`
    : html`<strong class="clip" title=${file.filename}>${name}</strong>`;
};

const columnsOf = (names) => [
  { id: "name", title: "Name", width: "minmax(220px, 2.4fr)", cell: (file) => html`<span class="batch-name"><${Name} ...${{ file, names }} /><${Copy} text=${file.id} shown=${short(file.id)} label="copy the id" /></span>` },
  { id: "purpose", title: "Purpose", width: "minmax(90px, 1fr)", cell: (file) => factsOf(file, names).what },
  { id: "bytes", title: "Size", width: "90px", isNumber: true, cell: ({ bytes: size }) => bytes(size) },
  { id: "created", title: "Created", width: "minmax(100px, 1fr)", yields: 2, cell: ({ created_at: at }) => html`<${When} at=${at} />` },
  { id: "expires", title: "Expires", width: "minmax(110px, 1fr)", yields: 1, cell: ({ expires_at: at }) => (at ? html`<${When} at=${at} />` : "never") },
  { id: "used", title: "Used by", width: "minmax(110px, 1fr)", cell: (file) => html`<a href=${address("/batches", { search: file.id })}>Show batches</a>` },
  { id: "get", title: "Download", width: "96px", cell: (file) => html`<${Download} file=${file} />` },
];

const Download = ({ file }) => html`<${Button} kind="quiet" icon="download" label=${`Download ${file.filename}`} act=${() => download(file)} />`;

const FileCard = ({ file, names }) => html`
  <div class="card-line"><${Name} ...${{ file, names }} /><${Download} file=${file} /></div>
  <div class="card-line small"><span class="muted clip">${factsOf(file, names).what} · ${bytes(file.bytes)} · <${When} at=${file.created_at} /></span>
    <a href=${address("/batches", { search: file.id })}>Batches</a></div>
`;

function remove(files, reload) {
  confirm({
    title: files.length === 1 ? `Delete ${files[0].filename}?` : `Delete ${count(files.length, "file")}?`,
    text: "Running batches keep what they need. You cannot download it any more.",
    action: `Delete ${bytes(files.reduce((sum, { bytes: size }) => sum + size, 0))}`,
    work: async () => {
      for (const { id } of files) await call("DELETE", `/files/${encodeURIComponent(id)}`);
      selected.value = new Set();
      toast(`Deleted ${count(files.length, "file")}.`);
      reload();
    },
  });
}

function Bulk({ rows, reload }) {
  const chosen = rows.filter(({ id }) => selected.value.has(id));
  if (!chosen.length) return null;
  return html`
    <div class="bulk" role="group" aria-label="Selected files">
      <strong>${count(chosen.length, "file")} selected</strong>
      <${Button} icon="download" act=${() => chosen.forEach(download)}>Download<//>
      ${canWrite() && html`<${Button} kind="danger" icon="close" act=${() => remove(chosen, reload)}>Delete ${count(chosen.length, "file")}<//>`}
      <${Button} kind="quiet" act=${() => (selected.value = new Set())}>Clear<//>
    </div>
  `;
}

export default function Files() {
  const purpose = place.value.query.get("purpose");
  const live = useList("/files", { purpose }, { change: "file", every: 30 });
  const names = useNames();
  // What is selected is in sight: another filter, page or project begins anew.
  useEffect(() => () => (selected.value = new Set()), [live.key]);
  const { shown, room, menu } = useColumns("files", columnsOf(names));
  const action = canWrite() && html`<${LinkButton} href="#/new" icon="plus" kind="primary">New batch<//>`;
  return html`
    <${Page} title="Files" live=${live}>
      <div class="toolbar"><${Filters} filters=${FILTERS} /><div class="end">${menu}</div></div>
      ${live.rows && html`<${Bulk} rows=${live.rows} reload=${live.reload} />`}
      ${live.rows?.length === 0
        ? html`<${Empty} action=${action} command="tidemill run requests.jsonl">${purpose ? "No file has this purpose." : "There is no file yet. Drop a JSONL file anywhere on this page."}<//>`
        : html`<${Table} label="Files" columns=${shown} room=${room} rows=${live.rows} id=${({ id }) => id} selected=${selected} name=${(file) => factsOf(file, names).name} error=${live.error} onEnd=${live.onEnd}
            card=${(file) => html`<${FileCard} ...${{ file, names }} />`} cardHeight=${76} />`}
      ${live.hasMore && html`<${More} pages=${live} />`}
    <//>
  `;
}
