/** What a browser remembers about its user's taste: theme, time zone, width of the rail, columns of tables. */

import { effect, signal } from "./view.js";

const PREFIX = "tidemill-";

/** A signal whose value outlives the tab. */
export function kept(name, usual) {
  let value = usual;
  try {
    value = JSON.parse(localStorage.getItem(PREFIX + name)) ?? usual;
  } catch {
    // Another program's value, or a browser without storage.
  }
  const found = signal(value);
  let isFirst = true;
  effect(() => {
    const text = JSON.stringify(found.value);
    if (!isFirst) localStorage.setItem(PREFIX + name, text);
    isFirst = false;
  });
  return found;
}

/** `auto` follows the system. @type {import("@preact/signals").Signal<"auto"|"light"|"dark">} */
export const theme = kept("theme", "auto");
/** @type {import("@preact/signals").Signal<"local"|"utc">} */
export const zone = kept("zone", "local");
/** Whether keys without Ctrl or Alt act: spoken words would press them. @type {import("@preact/signals").Signal<"on"|"off">} */
export const shortcuts = kept("shortcuts", "on");
export const isRailOpen = kept("rail", true);

const system = matchMedia("(prefers-color-scheme: dark)");
/** Whether the system is dark, which the theme `auto` follows. */
export const isSystemDark = signal(system.matches);
system.addEventListener("change", () => {
  isSystemDark.value = system.matches;
});

const narrow = matchMedia("(max-width: 639px)");
/** Whether the window is as narrow as a phone: rows are cards, and a panel covers the page. */
export const isNarrow = signal(narrow.matches);
narrow.addEventListener("change", () => {
  isNarrow.value = narrow.matches;
});

effect(() => {
  document.documentElement.dataset.theme = theme.value;
});
