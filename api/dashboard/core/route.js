/**
 * The address as state: `?project=nightly#/batches?status=failed`. Everything that a page shows follows from it, so an
 * address can be passed on, and Back returns to the same project, filters and scroll position. The project stands before
 * the `#`, so that links within the dashboard keep it.
 */

import { signal } from "./view.js";

/** @typedef {{path: string, query: URLSearchParams, text: string}} Place */

/** @returns {Place} */
function read() {
  const text = location.hash.slice(1) || "/";
  const [path, search = ""] = text.split("?");
  return { path, query: new URLSearchParams(search), text };
}

/** Where the user is. */
export const place = signal(read());

/**
 * An address of the dashboard.
 * @param {string} path
 * @param {Record<string, string|number|null|undefined>} [query] Empty values are left out.
 */
export function address(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return `#${path}${given.length ? `?${new URLSearchParams(given)}` : ""}`;
}

/** Go to an address. */
export function go(path, query) {
  location.hash = address(path, query).slice(1);
}

/**
 * Change values of the query; null or "" removes one. It replaces the entry of the history unless `isStep`.
 * @param {Record<string, string|number|null>} values
 */
export function setQuery(values, { isStep = false } = {}) {
  const { path, query } = read();
  const next = address(path, { ...Object.fromEntries(query), ...values });
  if (next === location.hash) return;
  if (isStep) location.hash = next.slice(1);
  else {
    history.replaceState(history.state, "", next);
    place.value = read();
  }
}

/** The project of the address, or null. */
export const projectOf = () => new URLSearchParams(location.search).get("project") || null;

/** The address of a page in a project; by default of the present page. */
const within = (project, hash = location.hash) => `${location.pathname}${project ? `?${new URLSearchParams({ project })}` : ""}${hash}`;

/** Name the project in the address; null removes it. */
export function keepProject(project) {
  if (projectOf() !== project) history.replaceState(history.state, "", within(project));
}

/** Go to another project, to the page of `path`, or to the same page. */
export function goToProject(project, path) {
  history.pushState(null, "", within(project, path === undefined ? undefined : address(path)));
  place.value = read();
}

export const batchPath = (id) => `/batches/${encodeURIComponent(id)}`;

/** Scroll to where this entry of the history was, as soon as the page is high enough; a user who scrolls wins. */
function restoreScroll() {
  const wanted = history.state?.y ?? 0;
  const watcher = new ResizeObserver(attempt);
  const inputs = ["wheel", "touchmove", "keydown", "pointerdown"];
  function stop() {
    watcher.disconnect();
    for (const name of inputs) removeEventListener(name, stop);
  }
  function attempt() {
    scrollTo(0, wanted);
    if (Math.abs(scrollY - wanted) < 2) stop();
  }
  for (const name of inputs) addEventListener(name, stop, { passive: true });
  requestAnimationFrame(() => {
    attempt();
    if (Math.abs(scrollY - wanted) >= 2) watcher.observe(document.body);
  });
  return stop;
}

/** Follow the address from now on. */
export function start() {
  let stop = () => {};
  // The browser would scroll before there is anything to scroll to.
  history.scrollRestoration = "manual";
  for (const event of ["click", "keydown", "pagehide"])
    addEventListener(event, () => history.replaceState({ ...history.state, y: scrollY }, ""), true);
  const follow = () => {
    const { path, text } = place.value;
    const next = read();
    if (next.text === text) return;
    place.value = next;
    // A row that opens, or another tab of the same page, leaves the page where it is.
    if (place.value.path === path && history.state?.y === undefined) return;
    stop();
    stop = restoreScroll();
  };
  addEventListener("hashchange", follow);
  // Between two projects the browser sends this event alone.
  addEventListener("popstate", follow);
  stop = restoreScroll();
}
