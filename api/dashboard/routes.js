/**
 * The pages. To add one, write `pages/NAME.js` and an entry here.
 *
 * A page is a component, the default export of its module; it gets the parts of the path as `params` and reads filters
 * from `place.value.query` (core/route.js). It loads data with `useLive` (core/live.js) and shows it with the components
 * of `ui/`: Button, LinkButton, Card, Section, Copy, When, Banner, Empty, Skeleton, Menu, Facts, Tabs, Json (basics.js);
 * Table (table.js); Chart, Spark (chart.js); State, Progress (state.js); Filters, Field, TextField, SelectField (form.js);
 * toast, confirm, openDialog, Panel (overlay.js). Its first element is `Page` of ui/page.js, which sets the title.
 *
 * `rail` entries stand in the rail, `key` is their letter after `g`, and `role` is the least role that sees them.
 *
 * @typedef {{path: RegExp, title: string, load: () => Promise<any>, icon?: string, href?: string, key?: string,
 *   role?: "write"|"admin"|"operator"}} Route
 */

/** @type {Route[]} */
export const ROUTES = [
  { path: /^\/$/, title: "Overview", icon: "overview", href: "/", key: "o", load: () => import("./pages/overview.js") },
  { path: /^\/batches$/, title: "Batches", icon: "batches", href: "/batches", key: "b", load: () => import("./pages/batches.js") },
  { path: /^\/batches\/([^/]+)$/, title: "Batch", load: () => import("./pages/batch.js") },
  { path: /^\/files$/, title: "Files", icon: "files", href: "/files", key: "f", load: () => import("./pages/files.js") },
  { path: /^\/servers$/, title: "Servers", icon: "servers", href: "/servers", key: "s", role: "operator", load: () => import("./pages/servers.js") },
  { path: /^\/queues$/, title: "Queues", icon: "queues", href: "/queues", key: "q", load: () => import("./pages/queues.js") },
  { path: /^\/usage$/, title: "Usage", icon: "usage", href: "/usage", key: "u", load: () => import("./pages/usage.js") },
  { path: /^\/projects$/, title: "Projects", icon: "projects", href: "/projects", key: "p", role: "operator", load: () => import("./pages/projects.js") },
  { path: /^\/webhooks$/, title: "Webhooks", icon: "webhooks", href: "/webhooks", key: "w", load: () => import("./pages/webhooks.js") },
  { path: /^\/keys$/, title: "Keys", icon: "keys", href: "/keys", key: "k", role: "admin", load: () => import("./pages/keys.js") },
  { path: /^\/audit$/, title: "Audit", icon: "audit", href: "/audit", key: "a", role: "admin", load: () => import("./pages/audit.js") },
  { path: /^\/dead-letters$/, title: "Dead letters", icon: "letters", href: "/dead-letters", key: "d", role: "operator", load: () => import("./pages/dead-letters.js") },
  { path: /^\/settings$/, title: "Settings", icon: "settings", href: "/settings", key: "c", role: "operator", load: () => import("./pages/settings.js") },
  { path: /^\/new$/, title: "New batch", role: "write", load: () => import("./pages/new.js") },
  { path: /^\/replay$/, title: "Replay", role: "write", load: () => import("./pages/replay.js") },
  { path: /^\/compare$/, title: "Compare", load: () => import("./pages/compare.js") },
];

/** The entries of the rail, in its order. */
export const RAIL = ROUTES.filter(({ icon }) => icon);
