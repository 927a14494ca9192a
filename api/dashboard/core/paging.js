/** Pages of lists. A search may find nothing in one step and go on in the next, so several steps make a page. */

import { call } from "./client.js";

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
