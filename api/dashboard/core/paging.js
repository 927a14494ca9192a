/** Pages of lists. A search may find nothing in one step and go on in the next, so several steps make a page. */

import { call } from "./client.js";
import { useRef, useState } from "./view.js";

const STEPS_MAX = 10;

/**
 * Load rows after a cursor.
 * @param {string} path Of a list, below `/v1`.
 * @param {object} query Its filters.
 * @param {{limit: number, after?: string|number|null, signal?: AbortSignal}} options
 * @returns {Promise<{rows: any[], after: string|number|null, hasMore: boolean}>} `after` is where the next page begins;
 *   a search that has not come to its end after some steps may have fewer rows than `limit`.
 */
export async function pageOf(path, query, { limit, after = null, signal }) {
  const rows = [];
  let cursor = after;
  for (let step = 0; ; step += 1) {
    const page = await call("GET", path, { query: { ...query, limit: limit - rows.length, after: cursor }, signal });
    rows.push(...page.data);
    cursor = page.next_after ?? page.last_id ?? cursor;
    const hasMore = page.has_more && cursor !== null;
    if (!hasMore || rows.length >= limit || step + 1 >= STEPS_MAX) return { rows, after: cursor, hasMore };
  }
}

/**
 * The loaded rows after a reload of the newest page: older rows stay behind it, unless the page's last row was not
 * among them, which would leave a gap.
 * @param {{rows: any[]}|undefined} before
 * @param {{rows: any[], hasMore: boolean}} page
 */
export function merged(before, page) {
  if (!before || !page.hasMore) return page;
  const last = page.rows.at(-1)?.id;
  const place = before.rows.findIndex(({ id }) => id === last);
  if (last !== undefined && place < 0) return page;
  const fresh = new Set(page.rows.map(({ id }) => id));
  const older = before.rows.slice(place + 1).filter(({ id }) => !fresh.has(id));
  return older.length ? { ...before, rows: [...page.rows, ...older] } : page;
}

/** Where the next page of a list begins. */
const endOf = ({ after, rows }) => after ?? rows.at(-1)?.id;

/**
 * The next pages of a live list: `more` loads one and puts it behind the rows that are there, one at a time; `onEnd` does
 * so by itself until that fails, and `fault` says why.
 * @param {{key: string, data?: {rows: any[], hasMore: boolean}, change: Function}} live
 * @param {(data: object) => Promise<{rows: any[], hasMore: boolean}>} load Gets the data, and returns the next page alone.
 */
export function useMore({ key, data, change }, load) {
  const busy = useRef(null);
  const [failed, setFailed] = useState(null);
  const fault = failed?.key === key ? failed.message : null;
  async function more() {
    if (busy.current === key || !data?.hasMore) return;
    busy.current = key;
    setFailed(null);
    try {
      const page = await load(data);
      // The list may have been loaded again meanwhile, and end elsewhere.
      change((now) => (endOf(now) === endOf(data) ? { ...now, ...page, rows: [...now.rows, ...page.rows] } : now));
    } catch (error) {
      setFailed({ key, message: error.message });
    }
    if (busy.current === key) busy.current = null;
  }
  return { more, fault, onEnd: data?.hasMore ? () => fault ?? more() : undefined };
}
