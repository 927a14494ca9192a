/** A list of the API that grows by pages: the newest is loaded again at a change, older ones when they come into sight. */

import { call } from "./client.js";
import { RELOAD, useLive } from "./live.js";
import { useMore } from "./paging.js";

const PAGE = 100;

/**
 * @param {string} path Below `/v1`.
 * @param {object} query Filters; empty values are left out.
 * @param {{every?: number, limit?: number, change?: string}} [options] `change` is the type of events that concern the
 *   list; `every` is in seconds.
 * @returns What `useLive` returns, with `rows` (undefined while they load), `hasMore`, and `more`, which loads the next page.
 */
export function useList(path, query = {}, { every = 5, limit = PAGE, change } = {}) {
  const live = useLive(`list ${path} ${JSON.stringify(query)}`, async (stop, before) => {
    const page = await call("GET", path, { query: { ...query, limit }, signal: stop });
    const fresh = new Set(page.data.map(({ id }) => id));
    // Rows beyond the newest page stay; what left that page was deleted.
    const older = page.has_more ? (before?.rows ?? []).slice(page.data.length).filter(({ id }) => !fresh.has(id)) : [];
    return { rows: [...page.data, ...older], hasMore: older.length ? before.hasMore : page.has_more };
  }, { every, onChange: change && ((type) => (type === change ? RELOAD : undefined)) });
  const { data } = live;
  const more = useMore(live, async ({ rows }) => {
    const page = await call("GET", path, { query: { ...query, limit, after: rows.at(-1).id } });
    return { rows: page.data, hasMore: page.has_more };
  });
  return { ...live, rows: data?.rows, hasMore: data?.hasMore, more };
}
