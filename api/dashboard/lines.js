/** The finished lines of a batch, a page at a time; each opens to what was answered. */

import { call } from "./client.js";
import { cells, h, table } from "./dom.js";
import { number } from "./format.js";

const LIMIT = 50;
const PREVIEW_CHARS = 160;

export class Lines {
  /**
   * Nothing is asked for before `load`.
   * @param {object} options
   * @param {string} options.path Of the batch, below `/v1`.
   * @param {string} options.id
   * @param {string|null} options.status `completed` or `failed`; null for both.
   * @param {AbortSignal} options.signal
   * @param {(work: () => Promise<void>) => void} options.act Does what a button asks for, and tells what failed.
   */
  constructor({ path, id, status, signal, act }) {
    this.path = path;
    this.status = status;
    this.signal = signal;
    this.after = null;
    /** Whether the files are deleted that the lines stood in. */
    this.isGone = false;
    this.body = h("tbody");
    this.more = h("button", { type: "button", hidden: true, onclick: () => act(() => this.load()) }, "More lines");
    this.empty = h("p", { class: "empty" }, status ? `No line has ${status} so far.` : "No line is done so far.");
    this.section = h(
      "section",
      { id: "lines" },
      h("h2", {}, status ? `Lines that ${status}` : "Lines"),
      status ? h("p", {}, h("a", { href: `#/batches/${encodeURIComponent(id)}` }, "All lines")) : "",
      table("Lines", ["Line", "custom_id", "Status", "Answer"], this.body),
      this.empty,
      this.more,
    );
  }

  /** Whether nothing is shown although, by a batch's counts, there is something. */
  isWanted({ completed, failed }) {
    const done = { completed, failed }[this.status] ?? completed + failed;
    return done > 0 && this.body.children.length === 0 && !this.isGone;
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
    (body?.data?.[0]?.embedding ? `${body.data.length} embedding(s)` : JSON.stringify(body ?? null));
  const shown = String(text);
  return shown.length > PREVIEW_CHARS ? `${shown.slice(0, PREVIEW_CHARS)}…` : shown;
}
