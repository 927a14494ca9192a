/** Records that a stage could not process, and why; a panel has one with its bytes. They can be sent to their topics again. */

import { call } from "../core/client.js";
import { bytes, count, moment } from "../core/format.js";
import { useLive } from "../core/live.js";
import { address, place, setQuery } from "../core/route.js";
import { html, signal, useEffect } from "../core/view.js";
import { Banner, Button, Empty, Facts, Json, Skeleton, When } from "../ui/basics.js";
import { confirm, Panel, toast } from "../ui/overlay.js";
import { Page } from "../ui/page.js";
import { State } from "../ui/state.js";
import { Table } from "../ui/table.js";

const LIMIT = 1000;
const PATH = "/admin/dead_letters";
/** Letters of one request. */
const REQUEUED_MAX = 100;
const selected = signal(new Set());
const REFUSALS = { too_large: "lack their record's value", refused: "are of a topic that takes none again", not_found: "are no longer in the log" };

/** Send letters to their topics again, and say what became of them. */
async function send(ids, again, after) {
  const found = [];
  for (let first = 0; first < ids.length; first += REQUEUED_MAX) {
    const body = { ids: ids.slice(first, first + REQUEUED_MAX), again };
    found.push(...(await call("POST", `${PATH}/requeue`, { body })).data);
  }
  const number = (result) => found.filter((one) => one.result === result).length;
  const words = [count(number("sent"), "record was sent", "records were sent")];
  if (number("sent_before")) words.push(`${count(number("sent_before"), "was", "were")} sent before`);
  for (const [result, text] of Object.entries(REFUSALS)) if (number(result)) words.push(`${number(result)} ${text}`);
  toast(`${words.join(", ")}.`, number("sent") ? "good" : "bad");
  selected.value = new Set();
  after();
}

/** Ask, then send; one letter that was sent before is sent once more. */
const ask = (ids, again, after) =>
  confirm({
    title: `Send ${count(ids.length, "record")} again?`,
    text: "Mend the cause first: what no stage could process will become a dead letter again. A record that comes twice counts once.",
    action: `Send ${count(ids.length, "record")}`,
    work: () => send(ids, again, after),
  });

const stateOf = ({ requeued_at: at }) => (at ? { tone: "done", word: "requeued" } : { tone: "failed", word: "not processed" });

const COLUMNS = [
  { id: "at", title: "Time", width: "minmax(170px, 1fr)", cell: ({ id, at }) => html`<a class="row-link" href=${address("/dead-letters", { letter: id })}>${moment(at)}</a>` },
  { id: "state", title: "State", width: "160px", cell: (letter) => html`<${State} tone=${stateOf(letter).tone}>${stateOf(letter).word}<//>` },
  { id: "stage", title: "Stage", width: "110px", cell: ({ stage }) => stage },
  { id: "reason", title: "Reason", width: "minmax(200px, 3fr)", cell: ({ reason }) => html`<span title=${reason}>${reason}</span>` },
  { id: "topic", title: "Topic", width: "minmax(120px, 1fr)", yields: 1, cell: ({ topic }) => html`<code>${topic}</code>` },
  { id: "bytes", title: "Size", width: "80px", isNumber: true, yields: 2, cell: ({ bytes: size }) => bytes(size) },
];

const LetterCard = ({ letter }) => html`
  <div class="card-line">${COLUMNS[0].cell(letter)}${COLUMNS[1].cell(letter)}</div>
  <div class="small clip">${letter.reason}</div>
  <div class="small muted">${letter.stage}, ${bytes(letter.bytes)}</div>
`;

function Letter({ id, reload }) {
  const live = useLive(`dead letter ${id}`, (stop) => call("GET", `${PATH}/${id.split("/").map(encodeURIComponent).join("/")}`, { signal: stop }), { isFinal: () => true });
  const { data, error } = live;
  const renew = () => {
    live.reload();
    reload();
  };
  return html`
    <${Panel} title=${id} onClose=${() => setQuery({ letter: null })}>
      ${error && html`<${Banner} tone="bad">${error.message}<//>`}
      ${!data && !error && html`<${Skeleton} rows=${4} height=${24} />`}
      ${data && html`
        <section>
          <p>${data.reason}</p>
          <${Facts} entries=${[["Stage", data.stage], ["Topic", data.topic], ["Key", data.key], ["Size", bytes(data.bytes)], ["Time", html`<${When} at=${data.at} />`], ["Requeued", data.requeued_at && html`<${When} at=${data.requeued_at} />`]]} />
          ${data.is_cut
            ? html`<p class="muted">The value is too large for a letter; its topic has it at this offset.</p>`
            : html`<div class="buttons"><${Button} act=${() => ask([data.id], Boolean(data.requeued_at), renew)}>${data.requeued_at ? "Send it once more" : "Send it again"}<//></div>`}
        </section>
        <section><h3>The record</h3><${Json} value=${data} /></section>
      `}
    <//>
  `;
}

export default function DeadLetters() {
  const live = useLive("dead letters", (stop) => call("GET", PATH, { query: { limit: LIMIT }, signal: stop }), { every: 60 });
  const { data } = live;
  const letter = place.value.query.get("letter");
  useEffect(() => () => (selected.value = new Set()), []);
  const waiting = data?.data.filter(({ id, requeued_at: at }) => !at && selected.value.has(id)).map(({ id }) => id) ?? [];
  const tools = waiting.length > 0 && html`<${Button} kind="primary" act=${() => ask(waiting, false, live.reload)}>Send ${count(waiting.length, "record")} again<//>`;
  return html`
    <${Page} title="Dead letters" live=${live} tools=${tools}>
      ${data?.has_more && html`<${Banner}>Only the newest ${count(LIMIT, "record")} are shown; <code>tidemill dead list</code> has all.<//>`}
      ${data?.data.length === 0
        ? html`<${Empty} command="tidemill dead list">Every record could be processed: there is no dead letter.<//>`
        : html`<${Table} label="Dead letters" columns=${COLUMNS} selected=${selected} name=${({ id }) => id} rows=${data?.data} error=${live.error} id=${({ id }) => id} isCurrent=${({ id }) => id === letter} card=${(one) => html`<${LetterCard} letter=${one} />`} cardHeight=${92} />`}
      ${letter && html`<${Letter} key=${letter} id=${letter} reload=${live.reload} />`}
    <//>
  `;
}
