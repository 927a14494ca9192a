/** The frame: who asks, which page, and what went wrong. The address says all that a page shows. */

import { Fault, call, forget, hasKey, keep } from "./client.js";
import { h } from "./dom.js";
import * as batch from "./batch.js";
import * as batches from "./batches.js";
import * as create from "./create.js";
import * as usage from "./usage.js";

const main = document.querySelector("main");
const nav = document.querySelector("nav");
const fault = document.querySelector("#fault");
const PAGES = [
  [/^\/$/, batches.show],
  [/^\/batches\/([^/]+)$/, batch.show],
  [/^\/new$/, create.show],
  [/^\/usage$/, usage.show],
];
let shown = new AbortController();

/** Tell what failed, or with null that nothing does any more. */
function tell(error) {
  if (error instanceof Fault && error.status === 401) {
    forget();
    open();
  }
  fault.hidden = error === null;
  fault.textContent = error === null ? "" : error.message;
}

async function open() {
  shown.abort();
  shown = new AbortController();
  const { signal } = shown;
  fault.hidden = true;
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
  const found = PAGES.map(([form, show]) => [form.exec(path), show]).find(([match]) => match);
  main.replaceChildren();
  if (!found) {
    main.append(h("h1", {}, "There is no such page"), h("p", {}, h("a", { href: "#/" }, "To the batches")));
    return;
  }
  const [match, show] = found;
  try {
    await show({
      main,
      signal,
      tell,
      query: new URLSearchParams(search),
      parts: match.slice(1).map(decodeURIComponent),
    });
  } catch (error) {
    if (!signal.aborted) tell(error);
  }
}

/** Ask for a key. */
function enter() {
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
        keep(input.value.trim());
        try {
          await call("GET", "/batches", { query: { limit: 1 } });
        } catch (error) {
          forget();
          tell(error);
          return;
        }
        open();
      },
    },
    h("h1", {}, "Your batches"),
    h("label", { for: "key" }, "API key"),
    input,
    h("p", { class: "hint" }, "It stays in this tab. `tidemill up` keeps one in .tidemill/api_key."),
    h("button", {}, "Sign in"),
  );
  main.replaceChildren(form);
  input.focus();
}

document.querySelector("#leave").addEventListener("click", () => {
  forget();
  open();
});
addEventListener("hashchange", () => {
  open();
  main.focus();
});
open();
