/** Why an input was rejected: each kind of fault with its first lines, and the numbers of the others. */

import { count, number } from "../../core/format.js";
import { html } from "../../core/view.js";
import { Banner } from "../../ui/basics.js";

const KINDS_SHOWN = 10;
const LINES_SHOWN = 3;
const RANGES_SHOWN = 8;

/** Faults of one code and one field, by line. */
function kindsOf(faults) {
  const found = new Map();
  for (const fault of [...faults].sort((one, other) => (one.line ?? 0) - (other.line ?? 0))) {
    const key = `${fault.code} ${fault.param}`;
    found.set(key, [...(found.get(key) ?? []), fault]);
  }
  return [...found.values()];
}

/** Line numbers as `7, 9–66`. */
function ranges(lines) {
  const found = [];
  for (const line of lines) {
    if (found.at(-1)?.[1] === line - 1) found.at(-1)[1] = line;
    else found.push([line, line]);
  }
  const texts = found.slice(0, RANGES_SHOWN).map(([first, last]) => (first === last ? number(first) : `${number(first)}–${number(last)}`));
  return texts.join(", ") + (found.length > RANGES_SHOWN ? " and others" : "");
}

const One = ({ fault: { line, code, param, message } }) => html`
  <li>${line ? html`<strong>Line ${number(line)}</strong>${param ? html`, <code>${param}</code>` : ""}: ` : ""}${message} <code class="muted">${code}</code></li>
`;

function Kind({ faults }) {
  const others = faults.slice(LINES_SHOWN);
  return html`
    ${faults.slice(0, LINES_SHOWN).map((fault) => html`<${One} fault=${fault} />`)}
    ${others.length === 1 && html`<${One} fault=${others[0]} />`}
    ${others.length > 1 && html`<li><strong>${others[0].line ? `Lines ${ranges(others.map(({ line }) => line))}` : `${number(others.length)} more`}</strong>: the same fault <code class="muted">${others[0].code}</code></li>`}
  `;
}

export function Refused({ faults }) {
  const kinds = kindsOf(faults);
  return html`
    <${Banner} tone="bad">
      <p>The input was rejected, and no line has run. Mend these lines and start a new batch:</p>
      <ul class="faults">${kinds.slice(0, KINDS_SHOWN).map((one) => html`<${Kind} key=${one[0].code + one[0].param} faults=${one} />`)}</ul>
      ${kinds.length > KINDS_SHOWN && html`<p>And ${count(kinds.length - KINDS_SHOWN, "more kind")} of faults, in the tab Raw.</p>`}
    <//>
  `;
}
