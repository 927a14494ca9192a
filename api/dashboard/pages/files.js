/** The files of the project: inputs, and what batches wrote. */

import { call, canWrite, save } from "../core/client.js";
import { bytes, count, short } from "../core/format.js";
import { useList } from "../core/list.js";
import { address, place } from "../core/route.js";
import { html, signal } from "../core/view.js";
import { Button, Copy, Empty, LinkButton, When } from "../ui/basics.js";
import { Filters } from "../ui/form.js";
import { confirm, toast } from "../ui/overlay.js";
import { Page } from "../ui/page.js";
import { More, Table, useColumns } from "../ui/table.js";

const PURPOSES = [["batch", "Input"], ["batch_output", "Results"], ["user_data", "Data that lines name"]];
const FILTERS = [{ name: "purpose", title: "Purpose", options: PURPOSES }];
const WORDS = Object.fromEntries(PURPOSES);
const selected = signal(new Set());

const download = (file) => save(file.id, file.filename);

const COLUMNS = [
  { id: "name", title: "Name", width: "minmax(220px, 2.4fr)", cell: (file) => html`<span class="batch-name"><strong class="clip" title=${file.filename}>${file.filename}</strong><${Copy} text=${file.id} shown=${short(file.id)} label="copy the id" /></span>` },
  { id: "purpose", title: "Purpose", width: "minmax(90px, 1fr)", cell: ({ purpose }) => WORDS[purpose] ?? purpose },
  { id: "bytes", title: "Size", width: "90px", isNumber: true, cell: ({ bytes: size }) => bytes(size) },
  { id: "created", title: "Created", width: "minmax(100px, 1fr)", cell: ({ created_at: at }) => html`<${When} at=${at} />` },
  { id: "expires", title: "Expires", width: "minmax(110px, 1fr)", cell: ({ expires_at: at }) => (at ? html`<${When} at=${at} />` : "never") },
  { id: "used", title: "Used by", width: "minmax(110px, 1fr)", cell: (file) => html`<a href=${address("/batches", { search: file.id })}>Show batches</a>` },
  { id: "get", title: "Download", width: "96px", cell: (file) => html`<${Button} kind="quiet" icon="download" label=${`Download ${file.filename}`} act=${() => download(file)} />` },
];

const FileCard = ({ file }) => html`
  <div class="card-line"><strong class="clip">${file.filename}</strong>${COLUMNS.at(-1).cell(file)}</div>
  <div class="card-line small"><span class="muted clip">${WORDS[file.purpose] ?? file.purpose} · ${bytes(file.bytes)} · <${When} at=${file.created_at} /></span>
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
  const { shown, menu } = useColumns("files", COLUMNS);
  const action = canWrite() && html`<${LinkButton} href="#/new" icon="plus" kind="primary">New batch<//>`;
  return html`
    <${Page} title="Files" live=${live}>
      <div class="toolbar"><${Filters} filters=${FILTERS} /><div class="end">${menu}</div></div>
      ${live.rows && html`<${Bulk} rows=${live.rows} reload=${live.reload} />`}
      ${live.rows?.length === 0
        ? html`<${Empty} action=${action} command="tidemill run requests.jsonl">${purpose ? "No file has this purpose." : "There is no file yet. Drop a JSONL file anywhere on this page."}<//>`
        : html`<${Table} label="Files" columns=${shown} rows=${live.rows} id=${({ id }) => id} selected=${selected} error=${live.error} onEnd=${live.onEnd}
            card=${(file) => html`<${FileCard} file=${file} />`} cardHeight=${76} />`}
      ${live.hasMore && html`<${More} pages=${live} />`}
    <//>
  `;
}
