/** What an operator should look at: one row for each cause, the worst first. */

import { call, isOperator } from "../../core/client.js";
import { count, moment, number } from "../../core/format.js";
import { useLive } from "../../core/live.js";
import { address, batchPath } from "../../core/route.js";
import { html, useState } from "../../core/view.js";
import { Button, Section } from "../../ui/basics.js";
import { State } from "../../ui/state.js";
import { stateOf as stateOfServer } from "../servers/load.js";
import { called, isHeld, slackOf, stalls, stateOf } from "../shown.js";

const SHOWN_MAX = 12;
const BATCHES_MAX = 3;
const LETTERS = 100;
const LETTERS_SECONDS = 60;
const TONES = ["failed", "part", "waiting"];
const linkTo = (batch) => `#${batchPath(batch.id)}`;
const inTrouble = (trouble) => address("/batches", { trouble });
/** Addresses of one server wait for the same cause. */
const serverOf = ({ server }) => server?.split("@")[0];

/** The causes for which lines wait: a server, or a reason without one; each with the batches that wait. */
function causes(work, servers) {
  const found = new Map();
  for (const server of servers) {
    const { tone, word } = stateOfServer(server);
    if (tone !== "failed") continue;
    const { message = `It is ${word}.`, since = null } = server.load?.cause ?? {};
    found.set(server.id, { tone, key: server.id, message: server.fault ?? message, since, batches: new Set(), lines: 0 });
  }
  for (const batch of work)
    for (const wait of stalls(batch)) {
      const key = serverOf(wait) ?? wait.reason;
      const { message, since } = wait;
      const cause = found.get(key) ?? { tone: isHeld(wait) ? "waiting" : "part", key, message, since, batches: new Set(), lines: 0 };
      // A batch that waits for two reasons counts once.
      cause.lines += cause.batches.has(batch) ? 0 : wait.lines;
      cause.batches.add(batch);
      cause.since = Math.min(cause.since ?? since, since);
      found.set(key, cause);
    }
  return [...found.values()];
}

function causeRow({ tone, key, message, since, batches, lines }, servers) {
  const [first] = batches;
  const known = servers.some(({ id }) => id === key);
  const waiting = batches.size > 0 && ` · ${lines ? `${count(lines, "line")} of ` : ""}${count(batches.size, "batch waits", "batches wait")}`;
  const text = html`${message}${since && ` Since ${moment(since)}${waiting ? "" : "."}`}${waiting}${batches.size > (known ? 0 : 1) && html`: ${several([...batches], "stalled")}`}`;
  if (known) return { key, tone, href: address("/servers", { name: key }), name: key, text };
  if (batches.size === 1) return { key, tone, href: linkTo(first), name: called(first), text };
  return { key, tone, href: inTrouble("stalled"), name: key.replaceAll("_", " "), text };
}

/** Links to the first of some batches in trouble, and to the others. */
const several = (batches, trouble) => html`
  ${batches.slice(0, BATCHES_MAX).map((batch, place) => html`${place > 0 && ", "}<a href=${linkTo(batch)}>${called(batch)}</a>`)}${batches.length > BATCHES_MAX && html` and <a href=${inTrouble(trouble)}>${number(batches.length - BATCHES_MAX)} more</a>`}
`;

/** A row for each batch, or one for many. */
function rowsOf(batches, trouble, { name, tone, words, text }) {
  if (batches.length > BATCHES_MAX) return [{ key: `many ${words}`, tone, href: inTrouble(trouble), name, text: html`${count(batches.length, "batch", "batches")} ${words}: ${several(batches, trouble)}` }];
  return batches.map((batch) => ({ key: `${batch.id} ${words}`, tone, href: linkTo(batch), name: called(batch), text: text(batch) }));
}

function batchRows(work, ended) {
  const late = (wanted) => work.filter((batch) => slackOf(batch).tone === wanted);
  const over = (wanted) => ended.filter((batch) => stateOf(batch).tone === wanted);
  const word = (batch) => `It ended as: ${stateOf(batch).word}.`;
  return [
    ...rowsOf(late("bad"), "late", { name: "Late", tone: "failed", words: "will end after their deadline", text: (batch) => `Will end ${slackOf(batch).text}.` }),
    ...late("part").map((batch) => ({ key: `${batch.id} slack`, tone: "part", href: linkTo(batch), name: called(batch), text: `Only ${slackOf(batch).text}.` })),
    ...rowsOf(work.filter(({ tidemill: { fault } }) => fault), "failures", { name: "Dead letters of batches", tone: "failed", words: "lost records to dead letters",
      text: ({ tidemill: { fault } }) => `${count(fault.records, "record")} became dead letters: ${fault.reason}` }),
    ...rowsOf(over("failed"), "failures", { name: "Failed", tone: "failed", words: "of the last day failed", text: word }),
    ...rowsOf(over("part"), "failures", { name: "Failed lines", tone: "part", words: "of the last day ended with failed lines", text: word }),
  ];
}

function* hookRows(hooks) {
  for (const { id, name, tidemill: { enabled, failing_since: since } } of hooks) {
    const to = { key: id, href: address("/webhooks", { endpoint: id }), name };
    if (!enabled) yield { ...to, tone: "failed", text: "Deliveries failed for five days, and the endpoint is disabled." };
    else if (since) yield { ...to, tone: "part", text: `Deliveries have failed since ${moment(since)}.` };
  }
}

function* letterRows({ data, has_more: hasMore }) {
  const waiting = data.filter(({ requeued_at: at }) => !at).length;
  if (waiting) yield { key: "dead letters", tone: "failed", href: "#/dead-letters", name: "Dead letters", text: `No stage could process ${number(waiting)}${hasMore ? "+" : ""} of the newest records. Send them again once the cause is mended.` };
}

function troubles({ work, ended, hooks, servers }, letters) {
  const rows = [...causes(work, servers).map((cause) => causeRow(cause, servers)), ...batchRows(work, ended), ...hookRows(hooks), ...letterRows(letters)];
  return rows.sort((left, right) => TONES.indexOf(left.tone) - TONES.indexOf(right.tone));
}

const Trouble = ({ tone, href, name, text }) => html`
  <li>
    <${State} tone=${tone}><a href=${href}>${name}</a><//>
    <span>${text}</span>
  </li>
`;

export function Attention({ data }) {
  const [isWhole, setWhole] = useState(false);
  const letters = useLive(isOperator() ? "newest dead letters" : null, (stop) => call("GET", "/admin/dead_letters", { query: { limit: LETTERS }, signal: stop }), { every: LETTERS_SECONDS });
  const found = troubles(data, letters.data ?? { data: [] });
  const aside = found.length > SHOWN_MAX && html`<${Button} kind="quiet" act=${() => setWhole(!isWhole)}>${isWhole ? "Show fewer" : `Show all ${number(found.length)}`}<//>`;
  return html`
    <${Section} title="Needs attention" aside=${aside}>
      ${found.length
        ? html`<ul class="troubles">${found.slice(0, isWhole ? undefined : SHOWN_MAX).map((one) => html`<${Trouble} ...${one} key=${one.key} />`)}</ul>`
        : html`<p><${State} tone="done">All is well: nothing is late, stalled or rejected.<//></p>`}
    <//>
  `;
}
