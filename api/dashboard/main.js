/** The frame: who asks, which page, and what went wrong. The address says all that a page shows. */

import { Fault, call, forget, hasKey, keep, leave, share } from "./client.js";
import { h } from "./dom.js";
import { live } from "./live.js";
import * as batch from "./batch.js";
import * as batches from "./batches.js";
import * as create from "./create.js";
import * as usage from "./usage.js";

const main = document.querySelector("main");
const nav = document.querySelector("nav");
const fault = document.querySelector("#fault");
const PAGES = [
  [/^\/$/, "Batches", batches.show],
  [/^\/batches\/([^/]+)$/, "Batch", batch.show],
  [/^\/new$/, "New batch", create.show],
  [/^\/usage$/, "Usage", usage.show],
];
/** What went wrong when somebody did something, which stays until it is dismissed, and when the page looked. */
const faults = { act: null, look: null };
let shown = new AbortController();
/** What may be done with the key, and what a batch may hold. */
let limits = null;

/**
 * Tell what failed.
 * @param {"act"|"look"} kind
 * @param {Error|null} error null: nothing does any more.
 */
function tell(kind, error) {
  if (error instanceof Fault && error.status === 401 && hasKey()) {
    forget();
    open();
  }
  faults[kind] = error;
  const found = faults.act ?? faults.look;
  fault.hidden = found === null;
  fault.querySelector("span").textContent = found?.message ?? "";
}

const title = (text) => {
  document.title = `${text} · Tidemill`;
};

async function open(moved = false) {
  shown.abort();
  shown = new AbortController();
  const { signal } = shown;
  const { id, dataset } = document.activeElement ?? {};
  const held = { id, mark: dataset?.focus };
  tell("act", null);
  tell("look", null);
  nav.hidden = !hasKey();
  const [path, search] = (location.hash.slice(1) || "/").split("?");
  for (const link of nav.querySelectorAll("a")) {
    if (link.getAttribute("href") === `#${path}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!hasKey()) {
    enter();
    return;
  }
  main.replaceChildren();
  if (limits === null) await live(signal, knowLimits(signal), (error) => tell("look", error));
  if (signal.aborted) return;
  const canWrite = limits.role !== "read";
  nav.querySelector("[href='#/new']").hidden = !canWrite;
  const found = PAGES.map(([form, name, show]) => [form.exec(path), name, show]).find(([match]) => match);
  if (!found) {
    title("No such page");
    main.append(h("h1", {}, "There is no such page"), h("p", {}, h("a", { href: "#/" }, "To the batches")));
    return;
  }
  const [match, name, show] = found;
  title(name);
  try {
    const showing = show({
      main,
      signal,
      limits,
      canWrite,
      title,
      ready: once((target) => settle(held, target)),
      tell: (error) => tell("act", error),
      told: (error) => tell("look", error),
      query: new URLSearchParams(search),
      parts: match.slice(1).map(decodeURIComponent),
    });
    if (moved) (named(held.id) ?? main).focus({ preventScroll: true });
    await showing;
  } catch (error) {
    if (!signal.aborted) tell("look", error);
  }
}

const knowLimits = (signal) => async () => {
  limits = await call("GET", "/limits", { signal });
  return false;
};

const named = (id) => (id ? main.querySelector(`#${CSS.escape(id)}`) : null);

function once(work) {
  let isDone = false;
  return (...given) => {
    if (!isDone) work(...given);
    isDone = true;
  };
}

/** Once a page has its content: scroll to where this entry of the history was, and focus what had the focus. */
function settle({ mark }, target) {
  if (mark && document.activeElement === main)
    main.querySelector(`[data-focus="${CSS.escape(mark)}"]`)?.focus({ preventScroll: true });
  const y = history.state?.y;
  if (y === undefined && target) target.scrollIntoView();
  else scrollTo(0, y ?? 0);
}

/** Ask for a key. */
function enter() {
  title("Sign in");
  const input = h("input", {
    id: "key",
    type: "password",
    autocomplete: "current-password",
    required: true,
    placeholder: "sk-…",
  });
  const form = h(
    "form",
    {
      class: "enter",
      onsubmit: async (event) => {
        event.preventDefault();
        const typed = input.value.trim();
        try {
          limits = await call("GET", "/limits", { typed });
        } catch (error) {
          tell("act", error);
          input.focus();
          return;
        }
        keep(typed);
        open();
      },
    },
    h("h1", {}, "Your batches"),
    h("label", { for: "key" }, "API key"),
    input,
    h(
      "p",
      { class: "hint" },
      "It stays in the open tabs of this browser. `tidemill up` keeps one in .tidemill/api_key.",
    ),
    h("button", {}, "Sign in"),
  );
  main.replaceChildren(form);
  input.focus();
}

function left() {
  limits = null;
  open();
}

document.querySelector("#leave").addEventListener("click", () => {
  leave();
  left();
});
fault.querySelector("button").addEventListener("click", () => {
  tell("act", null);
  tell("look", null);
});
// The browser would scroll before there is anything to scroll to.
history.scrollRestoration = "manual";
for (const event of ["click", "change", "pagehide"])
  addEventListener(event, () => history.replaceState({ y: scrollY }, ""), true);
addEventListener("hashchange", () => open(true));
await share(left);
open();
