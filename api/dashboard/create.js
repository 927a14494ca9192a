/** A new batch: choose a file, see what it would cost, start it. */

import { call, upload } from "./client.js";
import { facts, h } from "./dom.js";
import { bytes, cost, number } from "./format.js";

const HEAD_BYTES = 1 << 20;

export async function show({ main, tell, ready, limits, canWrite }) {
  ready();
  if (!canWrite) {
    main.append(h("h1", {}, "New batch"), h("p", { class: "empty" }, "This key may read, and make no batch."));
    return;
  }
  const file = h("input", { type: "file", id: "file", accept: ".jsonl,.ndjson,.json,.txt", required: true });
  const label = h("input", { type: "text", id: "name", maxlength: 512, autocomplete: "off" });
  const windows = h(
    "select",
    { id: "window" },
    ...limits.completion_windows.map((window) =>
      h("option", { value: window, selected: window === limits.usual_window }, window),
    ),
  );
  const state = h("div", { "aria-live": "polite" });
  const form = h(
    "form",
    { class: "create" },
    h("label", { for: "file" }, "File with a request on each line (JSONL)"),
    file,
    h("label", { for: "name" }, "Name (may be empty)"),
    label,
    h("label", { for: "window" }, "Completion window"),
    windows,
    h("button", {}, "Upload"),
  );
  main.append(h("h1", {}, "New batch"), form, state);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    form.inert = true;
    try {
      const chosen = file.files[0];
      const endpoint = await endpointOf(chosen);
      const told = h("progress", { max: 1, value: 0, "aria-label": "Uploaded" });
      state.replaceChildren(h("p", {}, `Uploading ${bytes(chosen.size)} … `, told));
      const made = await upload(chosen, (part) => {
        told.value = part;
      });
      const estimate = await call("POST", "/batches/estimate", {
        body: { input_file_id: made.id, endpoint, completion_window: windows.value },
      });
      const wish = { name: label.value.trim(), window: windows.value };
      state.replaceChildren(...offer(estimate, made, endpoint, wish, { tell, discard }));
      tell(null);
    } catch (error) {
      discard();
      tell(error);
    }
  });

  function discard() {
    form.inert = false;
    state.replaceChildren();
  }
}

function offer(estimate, file, endpoint, { name, window }, { tell, discard }) {
  const unknown = estimate.models.filter((model) => !model.is_configured).map((model) => model.model);
  const { min, max } = estimate.cost;
  const start = async () => {
    const metadata = name ? { name } : null;
    try {
      const batch = await call("POST", "/batches", {
        body: { input_file_id: file.id, endpoint, completion_window: window, metadata },
      });
      location.hash = `/batches/${encodeURIComponent(batch.id)}`;
    } catch (error) {
      tell(error);
    }
  };
  const drop = async () => {
    discard();
    try {
      await call("DELETE", `/files/${encodeURIComponent(file.id)}`);
    } catch (error) {
      tell(error);
    }
  };
  return [
    h("h2", {}, "What it would be"),
    facts([
      ["Lines", number(estimate.lines)],
      ["Endpoint", endpoint],
      ["Window", window],
      ["Models", estimate.models.map((model) => model.model).join(", ")],
      ["Input tokens", `about ${number(estimate.input_tokens)}`],
      [
        "Output tokens",
        estimate.output_tokens_max === null ? "no limit is set" : `at most ${number(estimate.output_tokens_max)}`,
      ],
      ["Cost", max === null ? `at least ${cost(min)}` : `${cost(min)} to ${cost(max)}`],
    ]),
    estimate.unreadable_lines
      ? h(
          "p",
          { class: "note bad" },
          `${number(estimate.unreadable_lines)} lines cannot be read: the batch would be refused, and say which.`,
        )
      : null,
    unknown.length
      ? h("p", { class: "note bad" }, `There is no model ${unknown.join(", ")} here: the batch would be refused.`)
      : null,
    h(
      "div",
      { class: "buttons" },
      h("button", { type: "button", onclick: start }, "Start"),
      h("button", { type: "button", class: "quiet", onclick: drop }, "Discard"),
    ),
  ].filter((part) => part !== null);
}

/** The endpoint of a file's first line, which is that of the batch. */
async function endpointOf(file) {
  const text = await file.slice(0, HEAD_BYTES).text();
  const line = text
    .replace(/^\ufeff/, "")
    .split("\n")
    .find((found) => found.trim());
  try {
    const { url } = JSON.parse(line);
    if (typeof url === "string") return url;
  } catch {
    // Told below, as a line without a url is.
  }
  throw new Error("The first line of the file is no request: it needs custom_id, method, url and body.");
}
