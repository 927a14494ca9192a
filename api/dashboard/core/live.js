/**
 * Data that follows the service. A page gives a function that loads its data, and a key for them; this module calls
 * the function again at a change and now and then. It keeps loaded data for the next visit, so Back shows them at once.
 */

import { follow as followEvents, isLive } from "./events.js";
import { useEffect, useRef, useState } from "./view.js";

const SECONDS = 2;
const SECONDS_MAX = 30;
/** Seconds between two loads that changes ask for. */
const REST = 1;
const KEPT_MAX = 40;
/** `onChange` returns this to have the data loaded again. */
export const RELOAD = Symbol("reload");
/** @type {Map<string, any>} */
const cache = new Map();

function keep(key, data) {
  cache.delete(key);
  cache.set(key, data);
  if (cache.size > KEPT_MAX) cache.delete(cache.keys().next().value);
}

/** Forget everything that was loaded, as after a sign-out. */
export const forget = () => cache.clear();

/**
 * Load data and keep it up to date while the tab is visible.
 * @template T
 * @param {string|null} key Names the data; null loads nothing.
 * @param {(signal: AbortSignal, before: () => T|undefined, isWhole: boolean) => Promise<T>} load `before` gives the
 *   present data; with `isWhole`, changes may have been missed, so load everything again.
 * @param {object} [options]
 * @param {number} [options.every] Seconds after which it is loaded again, if no change comes.
 * @param {(data: T) => boolean} [options.isFinal] Final data is not loaded again.
 * @param {(type: string, object: any, data: T|undefined) => T|RELOAD|undefined} [options.onChange] The new data after a
 *   change of an object of this type, `RELOAD`, or undefined if the change does not concern it.
 * @param {boolean} [options.wantsLoad] Whether `onChange` wants changes of the type `load`: only operators get them.
 * @returns {{key: string|null, data: T|undefined, error: Error|null, since: number|null, reload: () => void,
 *   change: (apply: (data: T) => T) => void}} `since` is when the service last answered, in Unix seconds, if it does not
 *   answer now; `change` makes new data of the latest.
 */
export function useLive(key, load, { every = SECONDS, isFinal = () => false, onChange, wantsLoad } = {}) {
  const [state, setState] = useState({ key: null });
  const latest = useRef({ again: () => {}, loadedAt: 0 });
  Object.assign(latest.current, { key, load, isFinal, every, onChange });
  useEffect(() => {
    if (key === null) return undefined;
    const stop = new AbortController();
    const show = (found) => setState({ key, ...found });
    const release = onChange ? followEvents(changed(key, latest.current, show), { wantsLoad }) : () => {};
    follow(key, stop.signal, latest.current, show);
    return () => {
      release();
      stop.abort();
    };
  }, [key]);
  function change(apply) {
    if (!cache.has(key)) return;
    const data = apply(cache.get(key));
    keep(key, data);
    if (latest.current.key === key) setState((old) => ({ ...(old.key === key ? old : {}), key, data }));
  }
  const current = state.key === key ? state : {};
  return {
    key,
    change,
    data: current.data ?? cache.get(key),
    error: current.error ?? null,
    since: current.since ?? null,
    reload: () => latest.current.again(),
  };
}

/** Applies a change to the data, or loads it again. */
function changed(key, latest, show) {
  return (type, object) => {
    const isReset = type === "reset";
    if (isReset) latest.hasMissed = true;
    const found = isReset ? RELOAD : latest.onChange(type, object, cache.get(key));
    if (found === RELOAD) latest.again(Math.max(0, REST - (Date.now() / 1000 - latest.loadedAt)));
    else if (found !== undefined) {
      keep(key, found);
      show({ data: found });
      // The load in progress may miss this change.
      if (latest.isLoading) latest.again();
    }
  };
}

async function follow(key, stop, latest, show) {
  let wait = latest.every;
  let since = Date.now() / 1000;
  latest.hasMissed = true;
  while (!stop.aborted) {
    let isAsked = false;
    const isWhole = latest.hasMissed;
    latest.again = () => (isAsked = true);
    latest.hasMissed = false;
    latest.isLoading = true;
    try {
      const data = await latest.load(stop, () => cache.get(key), isWhole);
      if (stop.aborted) return;
      keep(key, data);
      since = latest.loadedAt = Date.now() / 1000;
      wait = latest.onChange && isLive() ? Math.max(latest.every, SECONDS_MAX) : latest.every;
      show({ data });
      if (latest.isFinal(data)) wait = Infinity;
    } catch (error) {
      if (stop.aborted) return;
      latest.hasMissed ||= isWhole;
      show({ data: cache.get(key), error, since });
      if ([400, 403, 404, 409].includes(error.status)) wait = Infinity;
      else wait = Math.min(2 * (Number.isFinite(wait) ? wait : SECONDS), SECONDS_MAX);
    }
    latest.isLoading = false;
    await pause(stop, isAsked ? Math.min(wait, REST) : wait, latest);
  }
}

/** Wait for some seconds, and as long as the tab is hidden; `latest.again` shortens it. */
function pause(stop, seconds, latest) {
  return new Promise((resolve) => {
    let isDue = false;
    let timer;
    const done = () => {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", look);
      stop.removeEventListener("abort", done);
      resolve();
    };
    const look = () => isDue && document.visibilityState === "visible" && done();
    const set = (rest) => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        isDue = true;
        look();
      }, rest * 1000);
    };
    if (Number.isFinite(seconds)) set(seconds);
    const ends = Date.now() + seconds * 1000;
    let isAsked = false;
    latest.again = (rest = 0) => {
      if (isAsked && rest) return;
      isAsked = true;
      if (!rest) done();
      else if (Date.now() + rest * 1000 < ends) set(rest);
    };
    document.addEventListener("visibilitychange", look);
    stop.addEventListener("abort", done);
  });
}
