/** What was used and what it cost, as the ledger has it. */

import { call } from "./client.js";
import { cells, h, table } from "./dom.js";
import { cost, number } from "./format.js";

const LIMIT = 1000;
const DAY_SECONDS = 86_400;
const GROUPS = [
  ["model", "model"],
  ["day", "day"],
  ["day,model", "day and model"],
  ["", "nothing"],
];
const SPANS = [
  [1, "a day"],
  [7, "7 days"],
  [30, "30 days"],
  [365, "a year"],
];

export async function show({ main, signal, ready, query }) {
  const by = query.get("by") ?? "model";
  const days = Number(query.get("days") ?? 30);
  const choose = (id, options, value) => {
    const select = h(
      "select",
      { id, onchange: go },
      ...options.map(([key, text]) => h("option", { value: key }, text)),
    );
    select.value = String(value);
    return select;
  };
  const groups = choose("by", GROUPS, by);
  const spans = choose("days", SPANS, days);
  function go() {
    location.hash = `/usage?${new URLSearchParams({ by: groups.value, days: spans.value })}`;
  }
  main.append(
    h("h1", {}, "Usage"),
    h(
      "form",
      { class: "filters" },
      h("label", { for: "by" }, "By"),
      groups,
      h("label", { for: "days" }, "Of the last"),
      spans,
    ),
  );
  const start = Math.floor(Date.now() / 1000) - days * DAY_SECONDS;
  const page = await call("GET", "/usage", { query: { group_by: by, start_time: start, limit: LIMIT }, signal });
  const names = by ? by.split(",") : [];
  const body = h("tbody", {}, ...page.data.map((sum) => row(sum, names)));
  main.append(table("Usage", [...names, "Batches", "Lines", "Input tokens", "Output tokens", "Cost"], body));
  if (!page.data.length) main.append(h("p", { class: "empty" }, "No batch has ended in this time."));
  if (page.has_more) main.append(h("p", { class: "note" }, `Only the first ${number(LIMIT)} rows are shown.`));
  main.append(
    h(
      "p",
      { class: "hint" },
      "Only lines that succeeded cost something. `tidemill usage --csv` has the exact numbers.",
    ),
  );
  ready();
}

function row(sum, names) {
  const counts = [sum.batches, sum.lines, sum.input_tokens, sum.output_tokens].map(number);
  return h("tr", {}, ...cells(...names.map((name) => sum[name] ?? "–"), ...counts, cost(sum.cost.total)));
}
