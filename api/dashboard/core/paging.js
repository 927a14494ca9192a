/** Pages of lists. A search may find nothing in one step and go on in the next, so several steps make a page. */

import { toast } from "../ui/overlay.js";
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
 * `more` of a live list: it loads the next page and puts it behind the rows that are there; one page at a time.
 * @param {{data?: {rows: any[], hasMore: boolean}}} live
 * @param {(data: object) => Promise<{rows: any[], hasMore: boolean}>} load Gets the data, and returns the next page alone.
 */
export function useMore({ data }, load) {
  const busy = useRef(false);
  const [, renew] = useState(0);
  return async () => {
    if (busy.current || !data?.hasMore) return;
    busy.current = true;
    try {
      const page = await load(data);
      Object.assign(data, page, { rows: [...data.rows, ...page.rows] });
    } catch (error) {
      data.hasMore = false;
      toast(error.message, "bad");
    }
    busy.current = false;
    renew((times) => times + 1);
  };
}
