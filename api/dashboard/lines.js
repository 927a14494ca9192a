/** The finished lines of a batch, a page at a time; each opens to what was answered. */

import { call } from "./client.js";
import { cells, h, table } from "./dom.js";
import { number } from "./format.js";
import { isOver } from "./shown.js";

const LIMIT = 50;
const PREVIEW_CHARS = 160;

export class Lines {
  /**
   * Nothing is asked for before `load`.
   * @param {object} options
   * @param {string} options.path Of the batch, below `/v1`.
   * @param {string} options.id
   * @param {string|null} options.status `completed` or `failed`; null for both.
   * @param {number} options.line The first line to show, counted from 1.
   * @param {AbortSignal} options.signal
   * @param {(work: () => Promise<void>) => void} options.act Does what a button asks for, and tells what failed.
   */
  constructor({ path, id, status, line, signal, act }) {
    this.path = path;
    this.status = status;
    this.line = line;
    this.signal = signal;
    /** The index of the line before the next page; the first line has the index 0. */
    this.after = line - 2;
    /** Whether a page has come, were it empty. */
    this.isLoaded = false;
    /** Whether the files are deleted that the lines stood in. */
    this.isGone = false;
    this.body = h("tbody");
    this.more = h("button", { type: "button", hidden: true, onclick: () => act(() => this.load()) }, "More lines");
    this.empty = h("p", { class: "empty" });
    const home = `#/batches/${encodeURIComponent(id)}`;
    const wanted = h("input", { id: "line", type: "number", min: 1, required: true, value: line });
    this.goto = h(
      "form",
      {
        class: "filters",
        onsubmit: (event) => {
          event.preventDefault();
          const query = new URLSearchParams({ ...(status && { status }), line: wanted.value });
          location.hash = `${home.slice(1)}?${query}`;
        },
      },
      h("label", { for: "line" }, "From line"),
      wanted,
      h("button", {}, "Show"),
    );
    this.section = h(
      "section",
      { id: "lines", hidden: true },
      h("h2", {}, status ? `Lines that ${status}` : "Lines"),
      status || line > 1 ? h("p", {}, h("a", { href: home, "data-focus": "all" }, "All lines")) : "",
      this.goto,
      table("Lines", ["Line", "custom_id", "Status", "Answer"], this.body),
      this.empty,
      this.more,
    );
  }

  /** Whether nothing is shown although, by a batch's counts, there is something. */
  isWanted(batch) {
    if (this.isGone || this.body.children.length > 0 || this.#done(batch) === 0) return false;
    // Behind a line there may be none for good.
    return !(isOver(batch) && this.isLoaded && this.line > 1);
  }

  /** Say why no line is shown, as far as a batch's counts tell. */
  tell(batch) {
    const done = this.#done(batch);
    const which = this.status ? `has ${this.status}` : isOver(batch) ? "was run" : "is done so far";
    this.section.hidden = false;
    this.goto.hidden = batch.request_counts.total <= LIMIT;
    if (this.isGone) return;
    if (done === 0) this.empty.textContent = `No line ${which}.`;
    else if (this.isLoaded && this.line > 1)
      this.empty.textContent = `From line ${number(this.line)} on, no line ${which}.`;
    else this.empty.textContent = `${number(done)} lines are done, and show here within seconds.`;
  }

  #done({ request_counts: { completed, failed } }) {
    return { completed, failed }[this.status] ?? completed + failed;
  }

  /** Show the next page. */
  async load() {
    const query = { limit: LIMIT, after: this.after, status: this.status };
    let page;
    try {
      page = await call("GET", `${this.path}/results`, { query, signal: this.signal });
    } catch (error) {
      this.isGone = [404, 409].includes(error.status);
      if (!this.isGone) throw error;
      this.empty.textContent = error.message;
      return;
    }
    this.isLoaded = true;
    this.body.append(...page.data.flatMap(row));
    this.after = page.next_after ?? this.after;
    this.more.hidden = !page.data.length || !page.has_more;
    this.empty.hidden = this.body.children.length > 0;
  }
}

function row({ index, status, result }) {
  const whole = h("pre", { hidden: true });
  const open = h(
    "button",
    {
      type: "button",
      class: "quiet",
      "aria-expanded": "false",
      onclick: () => {
        whole.hidden = !whole.hidden;
        whole.textContent = JSON.stringify(result, null, 2);
        open.setAttribute("aria-expanded", String(!whole.hidden));
      },
    },
    number(index + 1),
  );
  const code = result.response?.status_code ?? result.error?.code ?? status;
  return [
    h("tr", { class: status }, ...cells(open, h("code", {}, result.custom_id ?? ""), code, preview(result))),
    h("tr", { class: "whole" }, h("td", { colspan: 4 }, whole)),
  ];
}

/** The beginning of what a reader looks for: the text that was made, or what went wrong. */
function preview({ response, error }) {
  const body = response?.body;
  const text =
    error?.message ??
    body?.error?.message ??
    body?.choices?.[0]?.message?.content ??
    body?.choices?.[0]?.text ??
    body?.output?.[0]?.content?.[0]?.text ??
    body?.content?.[0]?.text ??
    (body?.data?.[0]?.embedding ? `${body.data.length} embedding(s)` : JSON.stringify(body ?? null));
  const shown = String(text);
  return shown.length > PREVIEW_CHARS ? `${shown.slice(0, PREVIEW_CHARS)}…` : shown;
}
