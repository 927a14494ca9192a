/**
 * The keyboard. `j` and `k` move between elements with the class `row-link`, `x` selects the row of the focus, `/`
 * goes to the search, `g` and a letter to a page, `?` shows the list, Escape closes what is open.
 */

import { shortcuts } from "./prefs.js";

const CHORD_MS = 1_000;
const closers = [];

/**
 * Call a function at Escape, before those that came earlier.
 * @returns {() => void} Ends it.
 */
export function onEscape(close) {
  closers.push(close);
  return () => closers.splice(closers.indexOf(close), 1);
}

const isTyping = (target) => target.closest("input, textarea, select, [contenteditable]") !== null;
const isField = (target) => isTyping(target) && !["checkbox", "radio"].includes(target.type);

/** Whether an element lies below what covers the top of the window. */
const isInSight = (element) => element.getBoundingClientRect().top >= parseFloat(getComputedStyle(document.documentElement).scrollPaddingTop);

function step(by) {
  const links = [...document.querySelectorAll(".row-link")];
  const row = document.activeElement?.closest("[data-row]");
  const place = links.findIndex((link) => link === document.activeElement || row?.contains(link));
  const next = place < 0 ? (links.find(isInSight) ?? links.at(-1)) : links[Math.min(links.length - 1, Math.max(0, place + by))];
  next?.focus({ preventScroll: true });
  next?.closest("[data-row]")?.scrollIntoView({ block: "nearest" });
}

function escape() {
  const close = closers.at(-1);
  if (close) close();
  else document.activeElement?.blur();
}

/**
 * Follow the keyboard.
 * @returns {() => void} Ends it.
 * @param {{pages: Record<string, () => void>, search: () => void, help: () => void, create: () => void}} does
 */
export function listen({ pages, search, help, create }) {
  let chordUntil = 0;
  const single = {
    "/": search,
    "?": help,
    n: create,
    j: () => step(1),
    k: () => step(-1),
    x: () => document.activeElement?.closest("[data-row]")?.querySelector("input[type=checkbox]")?.click(),
    g: () => {
      chordUntil = Date.now() + CHORD_MS;
    },
  };
  function press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Escape") {
      escape();
      return;
    }
    if (isField(event.target) || shortcuts.value === "off") return;
    const isChord = Date.now() < chordUntil;
    chordUntil = 0;
    const act = isChord ? pages[event.key] : single[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }
  addEventListener("keydown", press);
  return () => removeEventListener("keydown", press);
}
