/** Small components: Button, Link, Card, Copy, When, Banner, Empty, Skeleton, Menu, Facts, Tabs, Json. */

import { distance, moment } from "../core/format.js";
import { classes, html, signal, useEffect, useRef, useState } from "../core/view.js";
import { Icon } from "./icons.js";
import { hold, report, toast } from "./overlay.js";
import { say, sayResult } from "./say.js";

/** The time, renewed often enough for "3 min ago". */
const now = signal(Date.now() / 1000);
setInterval(() => {
  if (document.visibilityState === "visible") now.value = Date.now() / 1000;
}, 5_000);

/**
 * A button; while its work runs it is busy, and a failure is shown in its dialog, or as a toast.
 * @param {{act: () => any, kind?: "primary"|"danger"|"quiet", icon?: string, label?: string, disabled?: boolean}} props
 *   `label` names a button that shows an icon only.
 */
export function Button({ act, kind, icon, label, disabled, children, ...rest }) {
  const [isBusy, setBusy] = useState(false);
  async function press({ currentTarget: source }) {
    if (isBusy) return;
    const release = source.closest("dialog") ? hold() : () => {};
    setBusy(true);
    report(null, source);
    try {
      await act();
    } catch (error) {
      report(error, source);
    }
    release();
    setBusy(false);
  }
  return html`
    <button type="button" class=${classes("button", kind, !children && "square")} aria-label=${label} title=${label}
      aria-busy=${isBusy} disabled=${disabled} onClick=${press} ...${rest}>
      ${icon && html`<${Icon} name=${icon} />`}${children}
    </button>
  `;
}

/** A link that looks like a button. */
export const LinkButton = ({ href, kind, icon, children, ...rest }) => html`
  <a class=${classes("button", kind)} href=${href} ...${rest}>${icon && html`<${Icon} name=${icon} />`}${children}</a>
`;

/** One figure: a title, a value, and a note. `tone` colours the value: part, bad. */
export const Card = ({ title, value, tone, note, children }) => html`
  <section class="card figure" aria-label=${title}>
    <h2>${title}</h2>
    ${value !== undefined && html`<p class=${classes("value", tone)} style=${{ "--chars": String(value).length }}>${value}</p>`}
    ${children}
    ${note && html`<p class="note">${note}</p>`}
  </section>
`;

/** A part of a page with a heading. */
export const Section = ({ title, aside, children, ...rest }) => html`
  <section class="card section" aria-label=${title} ...${rest}>
    <header><h2>${title}</h2>${aside && html`<div class="aside">${aside}</div>`}</header>
    ${children}
  </section>
`;

/** Copy a text; without TLS a page has no clipboard, but may copy what it has selected. */
async function write(text, near) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = document.createElement("textarea");
  field.value = text;
  // In a dialog nothing outside of it can be selected.
  near.after(field);
  field.select();
  const isDone = document.execCommand("copy");
  field.remove();
  near.focus();
  if (!isDone) throw new Error("The browser refuses.");
}

/** A text that copies itself: an id in short, or a command. `label` says what it copies, if `shown` does not. */
export function Copy({ text, shown = text, label = "copy" }) {
  const [isDone, setDone] = useState(false);
  async function copy({ currentTarget }) {
    try {
      await write(text, currentTarget);
      setDone(true);
      say("Copied.");
      setTimeout(() => setDone(false), 1500);
    } catch {
      toast("The browser does not let this page copy.", "bad");
    }
  }
  return html`
    <button type="button" class="copy" title=${text} aria-label=${label ? `${shown}: ${label}` : undefined} onClick=${copy}>
      <code>${shown}</code><${Icon} name=${isDone ? "check" : "copy"} />
    </button>
  `;
}

/** A secret that is shown once: it is copied by a button or by hand, and its dialog closes by its button alone. */
export function Secret({ text, label }) {
  useEffect(() => hold(), []);
  return html`
    <div class="secret">
      <input type="text" readonly aria-label=${label} value=${text} onFocus=${({ currentTarget }) => currentTarget.select()} />
      <${Copy} text=${text} shown="Copy" label="" />
    </div>
  `;
}

/** A moment in Unix seconds: how long ago, with the exact time on hover. */
export const When = ({ at }) => {
  if (at === null || at === undefined) return "–";
  return html`<time dateTime=${new Date(at * 1000).toISOString()} title=${moment(at)}>${distance(at, now.value)}</time>`;
};

/**
 * What the reader should know first. `note` stands below it: a screen reader says only the text when that changes.
 * @param {{tone?: "info"|"warn"|"bad", note?: any}} props
 */
export const Banner = ({ tone = "info", children, note, action }) => html`
  <div class=${`banner ${tone}`}>
    <${Icon} name=${tone === "info" ? "info" : "alert"} />
    <div class="text"><div role=${tone === "bad" ? "alert" : "status"}>${children}</div>${note}</div>
    ${action}
  </div>
`;

/** Nothing is here: one sentence, one button, one command to copy. */
export function Empty({ children, action, command }) {
  const ref = useRef(null);
  useEffect(() => sayResult(ref.current.textContent));
  return html`
    <div class="empty">
      <p ref=${ref}>${children}</p>
      ${action}
      ${command && html`<${Copy} text=${command} label="copy the command" />`}
    </div>
  `;
}

/** Grey shapes in place of loading content, or why it fails to load. */
export const Skeleton = ({ rows = 1, height = 20, error }) =>
  error
    ? html`<p class="bad" role="alert">${error.message}</p>`
    : html`
        <div class="skeleton" role="status" aria-label="Loading">
          ${Array.from({ length: rows }, () => html`<span style=${{ height: `${height}px` }} />`)}
        </div>
      `;

/** A button that opens a list of actions or choices. Escape closes it, and a click or the focus elsewhere. */
export function Menu({ label, icon, name, kind, children }) {
  const ref = useRef(null);
  useEffect(() => {
    const close = (event) => {
      const menu = ref.current;
      if (!menu?.open) return;
      if (event.type === "keydown" && event.key === "Escape") {
        event.stopPropagation();
        menu.open = false;
        menu.querySelector("summary").focus();
      } else if (event.type !== "keydown" && (!menu.contains(event.target) || (event.type === "click" && event.target.closest("a, button")))) {
        menu.open = false;
        if (menu.contains(event.target)) menu.querySelector("summary").focus();
      }
    };
    addEventListener("click", close);
    addEventListener("focusin", close);
    addEventListener("keydown", close, true);
    return () => {
      removeEventListener("click", close);
      removeEventListener("focusin", close);
      removeEventListener("keydown", close, true);
    };
  }, []);
  return html`
    <details class="menu" ref=${ref}>
      <summary class=${classes("button", kind, !label && "square")} aria-label=${name} title=${name}>
        ${icon && html`<${Icon} name=${icon} />`}${label}${label && html`<${Icon} name="down" />`}
      </summary>
      <div class="choices">${children}</div>
    </details>
  `;
}

/** Names and values; entries without a value are left out. @param {{entries: [string, any][]}} props */
export const Facts = ({ entries }) => html`
  <dl class="facts">
    ${entries
      .filter(([, value]) => ![null, undefined, false, ""].includes(value))
      .map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}
  </dl>
`;

/** Links to the parts of a page, in the address. @param {{tabs: {id: string, title: string, count?: string}[]}} props */
export function Tabs({ label, tabs, current, href }) {
  const ref = useRef(null);
  useEffect(() => {
    // On a phone the current one may be out of sight.
    const link = ref.current.querySelector("[aria-current]");
    if (link) ref.current.scrollLeft = link.offsetLeft - ref.current.clientWidth / 2;
  }, [current]);
  return html`
    <nav class="tabs" aria-label=${label} ref=${ref}>
      ${tabs.map(
        ({ id, title, count }) => html`
          <a key=${id} href=${href(id)} aria-current=${id === current ? "page" : undefined}>
            ${title}${count !== undefined && html` <span class="badge">${count}</span>`}
          </a>
        `,
      )}
    </nav>
  `;
}

/** A JSON value as text, to read and to copy. */
export const Json = ({ value }) => html`<pre class="json" tabindex="0">${JSON.stringify(value, null, 2)}</pre>`;
