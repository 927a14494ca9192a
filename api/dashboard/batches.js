/** The list of batches, the newest first. */

import { call } from "./client.js";
import { cells, h, put, table } from "./dom.js";
import { cost, distance, moment, number } from "./format.js";
import { live } from "./live.js";
import { bar, called, end, isOver, model, name, pill, short, slack } from "./shown.js";

const LIMIT = 50;
const STATUSES = [
  "validating",
  "in_progress",
  "finalizing",
  "completed",
  "failed",
  "expired",
  "cancelling",
  "cancelled",
];

export async function show({ main, signal, told, ready, canWrite, query }) {
  const body = h("tbody");
  const list = table("Batches", ["Batch", "Model", "State", "Lines", "End", "Deadline", "Cost", "Created"], body);
  list.className = "cards";
  list.hidden = true;
  const empty = h("p", { class: "empty" }, "Loading …");
  const more = h("p", { class: "more" });
  main.append(h("h1", {}, "Batches"), filters(query), list, empty, more);
  const wanted = { limit: LIMIT, status: query.get("status"), after: query.get("after") };
  await live(
    signal,
    async () => {
      const page = await call("GET", "/batches", { query: wanted, signal });
      put(body, ...page.data.map(row));
      list.hidden = !page.data.length;
      empty.hidden = !list.hidden;
      put(empty, ...nothing(wanted, canWrite));
      put(more, ...turning(query, page));
      ready();
      return true;
    },
    told,
  );
}

function filters(query) {
  const choose = h("select", { id: "status", onchange: () => go({ status: choose.value }) });
  choose.append(h("option", { value: "" }, "all"));
  choose.append(...STATUSES.map((status) => h("option", { value: status }, status.replace("_", " "))));
  choose.value = query.get("status") ?? "";
  return h("form", { class: "filters" }, h("label", { for: "status" }, "State"), choose);
}

function row(batch) {
  const { total, completed, failed } = batch.request_counts;
  return h(
    "tr",
    {},
    h(
      "td",
      {},
      h(
        "a",
        { href: `#/batches/${encodeURIComponent(batch.id)}`, "data-focus": batch.id, title: batch.id },
        called(batch),
      ),
      name(batch) === null ? null : h("small", { class: "id" }, short(batch.id)),
    ),
    ...cells(
      model(batch) ?? "–",
      pill(batch),
      h(
        "div",
        {},
        bar(batch),
        h(
          "small",
          {},
          `${number(completed + failed)} / ${number(total)}`,
          failed ? ` · ${number(failed)} failed` : "",
        ),
      ),
      end(batch),
      isOver(batch) ? "–" : slack(batch),
    ),
    h("td", { class: "short" }, batch.tidemill.cost ? cost(batch.tidemill.cost.total) : "–"),
    h("td", { class: "short" }, h("time", { title: moment(batch.created_at) }, distance(batch.created_at))),
  );
}

function nothing(wanted, canWrite) {
  if (wanted.after) return ["There are no older batches."];
  if (wanted.status) return [`No batch is ${wanted.status.replace("_", " ")}.`];
  return ["There is no batch yet. ", canWrite ? h("a", { href: "#/new" }, "Make the first one.") : null];
}

function turning(query, page) {
  const status = query.get("status");
  const links = [];
  if (query.get("after")) links.push(h("a", { href: address({ status }) }, "Newest"));
  if (page.has_more) links.push(h("a", { href: address({ status, after: page.last_id }) }, "Older"));
  return links;
}

function address(values) {
  const given = Object.entries(values).filter(([, value]) => value);
  return `#/${given.length ? `?${new URLSearchParams(given)}` : ""}`;
}

function go(values) {
  location.hash = address(values).slice(1);
}
