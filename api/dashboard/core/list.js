/** A list of the API that grows by pages: the newest is loaded again at a change, older ones when they come into sight. */

import { call } from "./client.js";
import { RELOAD, useLive } from "./live.js";
import { merged, useMore } from "./paging.js";

const PAGE = 100;

/**
 * @param {string} path Below `/v1`.
 * @param {object} query Filters; empty values are left out.
 * @param {{every?: number, limit?: number, change?: string}} [options] `change` is the type of events that concern the
 *   list; `every` is in seconds.
 * @returns What `useLive` and `useMore` return, with `rows` (undefined while they load) and `hasMore`.
 */
export function useList(path, query = {}, { every = 5, limit = PAGE, change } = {}) {
  const live = useLive(`list ${path} ${JSON.stringify(query)}`, async (stop, before) => {
    const page = await call("GET", path, { query: { ...query, limit }, signal: stop });
    return merged(before(), { rows: page.data, hasMore: page.has_more });
  }, { every, onChange: change && ((type, object, data) => (type === change ? changed(object, data) : undefined)) });
  const { data } = live;
  const pages = useMore(live, async ({ rows }) => {
    const page = await call("GET", path, { query: { ...query, limit, after: rows.at(-1)?.id } });
    return { rows: page.data, hasMore: page.has_more };
  });
  return { ...live, rows: data?.rows, hasMore: data?.hasMore, ...pages };
}

/** A deleted object leaves the list wherever it is; any other change may add a row. */
function changed({ id, deleted }, data) {
  return deleted && data ? { ...data, rows: data.rows.filter((row) => row.id !== id) } : RELOAD;
}
