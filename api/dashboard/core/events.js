/**
 * The changes of the service as they happen (docs/reference/api/events.md). A tab holds one stream, and only while it is
 * visible and something listens, so that tabs in the background cost nothing.
 */

const TYPES = ["batch", "file", "webhook_endpoint", "catalog"];
/** The load of servers comes each second, and only to pages that show it. */
const LOAD = "load";
const AGAIN_MS = 15_000;
const CLOSE_MS = 2_000;
/** @type {Set<(type: string, object: object) => void>} */
const listeners = new Set();
/** @type {EventSource|null} */
let source = null;
let again = 0;
let hasLoad = false;
/** @type {Set<Function>} */
const loadListeners = new Set();

/** Whether changes arrive without being asked for. */
export const isLive = () => source?.readyState === EventSource.OPEN;

/**
 * Get every change from now on: its type and the new state of its object. `reset` says that some may have been missed.
 * @param {{wantsLoad?: boolean}} [options] Also the load of servers; only operators get it.
 * @returns {() => void} Ends it.
 */
export function follow(listener, { wantsLoad = false } = {}) {
  listeners.add(listener);
  if (wantsLoad) loadListeners.add(listener);
  if (wantsLoad && source && !hasLoad) close();
  adjust();
  return () => {
    listeners.delete(listener);
    loadListeners.delete(listener);
    // The next page of the same tab takes the stream over.
    setTimeout(adjust, CLOSE_MS);
  };
}

function adjust() {
  const isWanted = listeners.size > 0 && document.visibilityState === "visible";
  if (isWanted && !source) open();
  if (!isWanted && source) close();
}

/** Close the stream; the next one that listens opens it again, as the session that it has then. */
export function close() {
  clearTimeout(again);
  source?.close();
  source = null;
}

function open() {
  hasLoad = loadListeners.size > 0;
  source = new EventSource(hasLoad ? `../v1/events?types=${[...TYPES, LOAD]}` : "../v1/events");
  for (const type of [...TYPES, LOAD, "reset"]) source.addEventListener(type, tell);
  let wasOpen = false;
  source.onopen = () => (wasOpen = true);
  // The browser comes back by itself after a broken connection, but not after a refusal.
  source.onerror = () => {
    // Pages load again, so that they say at once if the service does not answer.
    if (wasOpen) tell({ type: "reset", data: "{}" });
    wasOpen = false;
    if (source?.readyState !== EventSource.CLOSED) return;
    close();
    again = setTimeout(adjust, AGAIN_MS);
  };
}

function tell({ type, data }) {
  const object = JSON.parse(data);
  for (const listener of listeners) listener(type, object);
}

document.addEventListener("visibilitychange", adjust);
