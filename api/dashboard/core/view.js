/** Imports of every component: Preact, its hooks and signals, and `html`, which makes elements of a template. */

import { h } from "preact";
import htm from "htm";

export { render } from "preact";
export { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
export { effect, signal } from "@preact/signals";

/** Values become text or attributes; there is no way to insert HTML. */
export const html = htm.bind(h);

/** Join class names; false ones are left out. */
export const classes = (...names) => names.filter(Boolean).join(" ");
