/** One batch: how far it is, what failed, what it cost, and its lines. */

import { call, save } from "./client.js";
import { cells, facts, h, put, table } from "./dom.js";
import { bytes, cost, distance, duration, moment, number, rate } from "./format.js";
import { live } from "./live.js";
import { Lines } from "./lines.js";
import { bar, called, end, held, isOver, model, pill, progress as far, short, slack } from "./shown.js";

const FAULTS_SHOWN = 20;

export async function show({ main, signal, tell, told, ready, title, canWrite, query, parts: [id] }) {
  const path = `/batches/${encodeURIComponent(id)}`;
  const act = async (work) => {
    try {
      await work();
      tell(null);
    } catch (error) {
      if (!signal.aborted) tell(error);
    }
  };
  const sections = [
    part("head", heading),
    part("notes", notes),
    part("progress", progress),
    part("actions", (batch, report) => actions(batch, report, { path, act, canWrite })),
    part("errors", (_, report) => errors(report)),
    part("about", details),
    part("timeline", timeline),
    part("receipt", receipt),
  ];
  const line = Math.max(1, Math.trunc(Number(query.get("line")) || 1));
  const lines = new Lines({ path, id, status: query.get("status"), line, signal, act });
  const loading = h("p", { class: "empty" }, "Loading …");
  main.append(loading, ...sections.map(({ place }) => place), lines.section);
  let report = null;
  const look = async () => {
    let batch;
    try {
      batch = await call("GET", path, { signal });
    } catch (error) {
      if (![400, 404].includes(error.status)) throw error;
      title("No such batch");
      main.replaceChildren(h("h1", {}, "There is no such batch"), h("p", {}, error.message), back());
      return false;
    }
    title(`${far(batch)} · ${called(batch)}`);
    if (isBehind(report, batch)) {
      report = await call("GET", `${path}/errors`, { signal });
      report.of = batch.status;
    }
    for (const { place, make } of sections) put(place, ...make(batch, report));
    loading.hidden = true;
    lines.tell(batch);
    if (lines.isWanted(batch)) {
      await lines.load();
      lines.tell(batch);
    }
    ready(query.has("line") ? lines.section : null);
    // Lines show some seconds after they are done.
    return !isOver(batch) || lines.isWanted(batch);
  };
  await live(signal, look, told);
}

const back = () => h("p", {}, h("a", { href: "#/" }, "To the batches"));

/** Whether there are lines that failed or were not run, and the report does not have all of them. */
function isBehind(report, { status, request_counts: { failed } }) {
  if (["expired", "cancelled"].includes(status) && report?.of !== status) return true;
  return failed > 0 && failed !== report?.total;
}

function part(id, make) {
  return { place: h("section", { id }), make };
}

function heading(batch) {
  return [
    h("h1", {}, called(batch), " ", pill(batch)),
    h(
      "p",
      { class: "id" },
      batch.id,
      " ",
      h(
        "button",
        {
          class: "quiet",
          type: "button",
          "data-focus": "copy",
          onclick: () => navigator.clipboard.writeText(batch.id),
        },
        "Copy",
      ),
    ),
  ];
}

function notes(batch) {
  const { at_risk: risk, waiting, recovered } = batch.tidemill;
  const refused = batch.errors?.data ?? [];
  return [
    ...waiting.map(held).map((text) => h("p", { class: "note bad" }, text)),
    risk ? h("p", { class: "note bad" }, `The log may drop what it still needs: ${distance(risk)}.`) : null,
    recovered
      ? h("p", { class: "note" }, "Parts of its results were lost in the store, and were read from the log again.")
      : null,
    refused.length
      ? h(
          "div",
          { class: "note bad" },
          h("p", {}, "The input was refused, and no line was run:"),
          h(
            "ul",
            {},
            ...refused
              .slice(0, FAULTS_SHOWN)
              .map((fault) => h("li", {}, fault.line ? `line ${number(fault.line)}: ` : "", fault.message)),
          ),
          refused.length > FAULTS_SHOWN
            ? h("p", {}, `And ${number(refused.length - FAULTS_SHOWN)} more, which the API lists.`)
            : null,
        )
      : null,
  ];
}

function progress(batch) {
  const { total, completed, failed } = batch.request_counts;
  const count = (status, shown, label) =>
    h(
      "a",
      {
        href: `#/batches/${encodeURIComponent(batch.id)}${status ? `?status=${status}` : ""}`,
        "data-focus": label,
      },
      h("strong", {}, number(shown)),
      ` ${label}`,
    );
  const speed = batch.tidemill.progress?.lines_per_second;
  return [
    bar(batch),
    h(
      "p",
      { class: "counts" },
      count("completed", completed, "completed"),
      count("failed", failed, "failed"),
      count("", total, "in all"),
    ),
    facts([
      [isOver(batch) ? "Time" : "End", end(batch)],
      ["Rate", isOver(batch) || typeof speed !== "number" ? null : rate(speed)],
      ["Deadline", isOver(batch) ? null : slack(batch)],
    ]),
  ];
}

function actions(batch, report, { path, act, canWrite }) {
  const button = (label, work) =>
    h("button", { type: "button", "data-focus": label, onclick: () => act(work) }, label);
  const file = (label, fileId, ending) =>
    fileId ? button(label, () => save(fileId, `${batch.id}_${ending}.jsonl`)) : null;
  const outputs = batch.tidemill.output_file_ids.length
    ? batch.tidemill.output_file_ids.map((fileId, index) =>
        file(`Output ${index + 1}`, fileId, `output-${String(index + 1).padStart(5, "0")}`),
      )
    : [file("Output", batch.output_file_id, "output")];
  return [
    h(
      "div",
      { class: "buttons" },
      ...outputs,
      file("Failed lines", batch.error_file_id, "errors"),
      file("Input", batch.input_file_id, "input"),
      canWrite && isOver(batch) && report?.unfinished
        ? button(unfinished(report), () => rerun(path))
        : null,
      !canWrite || isOver(batch) || batch.status === "cancelling"
        ? null
        : button("Cancel", async () => {
            if (confirm("Cancel this batch? What is done by now is kept.")) await call("POST", `${path}/cancel`);
          }),
    ),
  ];
}

const unfinished = ({ unfinished: count }) => `Rerun ${number(count)} unfinished line${count === 1 ? "" : "s"}`;

async function rerun(path) {
  const made = await call("POST", `${path}/rerun`, { body: { lines: "unfinished" } });
  location.hash = `/batches/${encodeURIComponent(made.id)}`;
}

function errors(report) {
  if (!report?.total) return [];
  const group = ({ code, status_code: status, count, samples }) =>
    h(
      "details",
      {},
      h("summary", {}, h("strong", {}, number(count)), ` × ${code}`, status ? ` (HTTP ${status})` : ""),
      h(
        "ul",
        {},
        ...samples.map((sample) =>
          h("li", {}, h("code", {}, sample.custom_id || `line ${sample.index + 1}`), " ", sample.message),
        ),
      ),
    );
  return [h("h2", {}, "What failed"), ...report.data.map(group)];
}

function details(batch) {
  const { usage } = batch;
  const link = (id) => h("a", { href: `#/batches/${encodeURIComponent(id)}`, title: id }, short(id));
  const { rerun_of: source, reruns, cost: price, copies } = batch.tidemill;
  return [
    h("h2", {}, "About it"),
    facts([
      ["Model", model(batch)],
      ["Endpoint", batch.endpoint],
      ["Window", batch.completion_window],
      ["Input tokens", usage ? number(usage.input_tokens) : null],
      ["Output tokens", usage ? number(usage.output_tokens) : null],
      ["Cost", price ? cost(price.total) : null],
      ["Copies of equal lines", copies ? number(copies) : null],
      ["Lines of", source ? link(source) : null],
      ["Rerun as", reruns.length ? h("span", {}, ...reruns.flatMap((id) => [link(id), " "])) : null],
      ...Object.entries(batch.metadata ?? {}),
    ]),
    ...models(batch),
  ];
}

function models({ tidemill: { models: shares } }) {
  if (!shares?.length) return [];
  const heads = ["Model", "Done", "Failed", "Lines", "Input tokens", "Output tokens", "Cost"];
  return [h("h2", {}, "Models"), table("Models", heads, h("tbody", {}, ...shares.map(shareRow)))];
}

function shareRow({ model: of, request_counts: counts, usage, cost: price }) {
  return h(
    "tr",
    {},
    ...cells(
      of,
      number(counts.completed),
      number(counts.failed),
      number(counts.total),
      usage ? number(usage.input_tokens) : "–",
      usage ? number(usage.output_tokens) : "–",
      price ? cost(price.total) : "–",
    ),
  );
}

function receipt(batch) {
  const found = batch.tidemill.receipt;
  if (!found) return [];
  const whole = found.missing === 0 && found.double === 0;
  const file = (file) =>
    file
      ? h(
          "span",
          {},
          `${number(file.lines)} lines, ${bytes(file.bytes)}, SHA-256 `,
          h("code", { class: "sum" }, file.sha256),
        )
      : null;
  return [
    h("h2", {}, "Receipt"),
    h(
      "p",
      { class: whole ? "good" : "bad" },
      `${number(found.lines)} lines in = ${number(found.output?.lines ?? 0)} out + ${number(found.errors?.lines ?? 0)} errors; ` +
        `${number(found.missing)} missing, ${number(found.double)} duplicate`,
    ),
    facts([
      ["Output", file(found.output)],
      ["Errors", file(found.errors)],
    ]),
  ];
}

function timeline(batch) {
  const events = [
    ["created", batch.created_at],
    ["in progress", batch.in_progress_at],
    ["cancelling", batch.cancelling_at],
    ["finalizing", batch.finalizing_at],
    ["completed", batch.completed_at],
    ["failed", batch.failed_at],
    ["expired", batch.expired_at],
    ["cancelled", batch.cancelled_at],
  ].filter(([, at]) => at);
  const entry = ([event, at]) =>
    h(
      "li",
      {},
      `${event} `,
      h("time", {}, moment(at)),
      at > batch.created_at ? ` (after ${duration(at - batch.created_at)})` : "",
    );
  return [h("h2", {}, "Timeline"), h("ol", {}, ...events.map(entry))];
}
