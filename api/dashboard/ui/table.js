/**
 * One table for every list. Only the rows in sight exist, so a list may have any length; without room, a row is a card.
 *
 *   const columns = [
 *     { id: "name", title: "Name", width: "minmax(200px, 2fr)", cell: (row) => html`<a class="row-link" …>` },
 *     { id: "lines", title: "Lines", width: "96px", isNumber: true, cell: (row) => number(row.lines), sort: (row) => row.lines },
 *     { id: "cost", title: "Cost", width: "80px", isNumber: true, isOptional: true, cell: … },   // hidden until chosen
 *     { id: "bar", title: "Progress", width: "64px", yields: 1, cell: … },   // the first to go without room, unless chosen
 *   ];
 *   const { shown, room, menu } = useColumns("files", columns);      // `menu` goes into the page's toolbar
 *   <${Table} label="Files" columns=${shown} room=${room} rows=${rows} id=${(row) => row.id} card=${(row) => html`…`} />
 *
 * The class `row-link` makes a link cover its row, and `j`, `k` and Enter work on it. A column with `sort` sorts a list
 * that is loaded as a whole; with `order` the page asks the API (`onOrder`).
 */

import { count, number } from "../core/format.js";
import { isNarrow, kept } from "../core/prefs.js";
import { classes, html, plain, signal, useEffect, useLayoutEffect, useMemo, useRef, useState } from "../core/view.js";
import { Button, Menu, Skeleton } from "./basics.js";
import { sayResult, useSay } from "./say.js";

const ROW = 36;
/** Pixels of a line in a card, and of its padding. */
const LINE = 22;
const AROUND = 24;
const BEYOND = 12;
const PRINTED_MAX = 2000;
/** Pixels of the column with the check boxes. */
const SELECT = 36;
const choices = new Map();

/**
 * The columns that the user has chosen, and the menu to choose them. The table tells `room` the ids of those that have
 * none, so that the menu says so; null on a phone, where cards of their own leave no choice.
 */
export function useColumns(name, columns) {
  if (!choices.has(name)) choices.set(name, kept(`columns-${name}`, {}));
  const choice = choices.get(name);
  const [room] = useState(() => signal([]));
  const isChosen = ({ id, isOptional }) => choice.value[id] ?? !isOptional;
  const isOut = (column) => isChosen(column) && room.value.includes(column.id);
  const menu = room.value && html`
    <${Menu} icon="columns" name="Columns">
      ${columns.slice(1).map(
        (column) => html`
          <label key=${column.id} class="choice">
            <input type="checkbox" checked=${isChosen(column) && (!isOut(column) || Boolean(choice.value[column.id]))}
              onChange=${(event) => {
                choice.value = { ...choice.value, [column.id]: event.currentTarget.checked };
              }} />
            ${column.title}${isOut(column) && html`<small class="muted">no room</small>`}
          </label>
        `,
      )}
    <//>
  `;
  const shown = columns.filter((column, place) => place === 0 || isChosen(column)).map((column) => (choice.value[column.id] ? { ...column, yields: undefined } : column));
  return { shown, room, menu };
}

/** The columns for which there is room, which those with `yields` give up in that order; null without room for the others. */
function useRoom(table, columns, around) {
  const [room, setRoom] = useState(Infinity);
  const [seen, setSeen] = useState({});
  useLayoutEffect(() => {
    if (!table.current) return undefined;
    const look = () => setRoom(table.current?.clientWidth ?? Infinity);
    const watcher = new ResizeObserver(look);
    watcher.observe(table.current);
    look();
    return () => watcher.disconnect();
  }, [table.current]);
  useLayoutEffect(() => {
    // Numbers are never cut, so a column of them may be wider than its least width; a table that is too wide says so.
    const titles = [...(table.current?.querySelectorAll(":scope:not(.cards) > .head [data-column]") ?? [])];
    if (!titles.length || titles.at(-1).getBoundingClientRect().right <= table.current.getBoundingClientRect().right + 1) return;
    const wider = titles.filter((title) => title.offsetWidth > (seen[title.dataset.column] ?? 0));
    if (wider.length) setSeen({ ...seen, ...Object.fromEntries(wider.map((title) => [title.dataset.column, title.offsetWidth])) });
  });
  if (isNarrow.value) return null;
  const widthOf = (column) => Math.max(parseFloat(roomOf(column).least) || 0, seen[column.id] ?? 0);
  const givers = columns.filter(({ yields }) => yields).sort((one, other) => one.yields - other.yields);
  let fitting = columns;
  while (fitting.reduce((sum, column) => sum + widthOf(column), around) > room) {
    const next = givers.shift();
    if (!next) return null;
    fitting = fitting.filter((column) => column !== next);
  }
  return fitting;
}

/** The first and the last row in sight, of rows with a fixed height. */
function useSight(ref, rows, height) {
  const [sight, setSight] = useState([0, 60]);
  useLayoutEffect(() => {
    let frame = 0;
    const look = () => {
      frame = 0;
      if (!ref.current) return;
      const { top } = ref.current.getBoundingClientRect();
      const first = Math.max(0, Math.floor(-top / height) - BEYOND);
      const last = Math.ceil((innerHeight - top) / height) + BEYOND;
      setSight((old) => (old[0] === first && old[1] === last ? old : [first, last]));
    };
    const soon = () => {
      frame ||= requestAnimationFrame(look);
    };
    look();
    // Capture scrolling of a panel around the table, too.
    addEventListener("scroll", soon, { passive: true, capture: true });
    addEventListener("resize", soon);
    // On paper nothing scrolls.
    const all = () => setSight([0, Math.min(rows, PRINTED_MAX)]);
    addEventListener("beforeprint", all);
    addEventListener("afterprint", soon);
    return () => {
      cancelAnimationFrame(frame);
      removeEventListener("scroll", soon, { capture: true });
      removeEventListener("resize", soon);
      removeEventListener("beforeprint", all);
      removeEventListener("afterprint", soon);
    };
  }, [height, rows]);
  return [Math.min(sight[0], Math.max(0, rows - 1)), Math.min(rows, sight[1])];
}

/** Rows in the order that a click on a heading asks for. */
function useSorted(rows, columns) {
  const [sort, setSort] = useState(null);
  const sorted = useMemo(() => {
    const value = columns.find(({ id }) => id === sort?.by)?.sort;
    if (!value) return rows;
    const compare = (one, other) => (value(one) < value(other) ? -1 : value(one) > value(other) ? 1 : 0);
    const found = [...rows].sort(compare);
    return sort.isDown ? found.reverse() : found;
  }, [rows, columns, sort]);
  const turn = (id) => setSort({ by: id, isDown: sort?.by === id ? !sort.isDown : false });
  return { sorted, sort, turn };
}

const isSortable = (column, onOrder) => Boolean(column.sort || (column.order && onOrder));

function Heading({ column, sort, turn, order, onOrder }) {
  const isDown = column.order ? order !== "asc" : sort?.isDown;
  const isActive = column.order ? Boolean(onOrder) : sort?.by === column.id;
  const direction = isActive ? (isDown ? "descending" : "ascending") : undefined;
  const press = () => (column.order ? onOrder(order === "asc" ? null : "asc") : turn(column.id));
  return html`
    <div role="columnheader" data-column=${column.id} class=${classes("cell", column.isNumber && "number")} aria-sort=${direction}
      style=${column.isNumber && { minWidth: roomOf(column).least }}>
      ${isSortable(column, onOrder)
        ? html`<button type="button" class="sort" onClick=${press}>
            ${column.title}<span aria-hidden="true">${direction ? (isDown ? " ↓" : " ↑") : ""}</span>
          </button>`
        : column.title}
    </div>
  `;
}

/** The least width of a column, and its track in the grid: a number is never cut, so its column grows with its rows. */
function roomOf({ width, isNumber }) {
  const [, least = width, most = "max-content"] = width.match(/^minmax\((.+), (.+)\)$/) ?? [];
  return { least, track: isNumber ? `minmax(max-content, ${most})` : width };
}

/** The check box of a row, or of all rows that are loaded; `label` names it, and `words` stand beside it. */
function Select({ ids, selected, label, words }) {
  const isOn = ids.length > 0 && ids.every((id) => selected.value.has(id));
  const flip = () => {
    const next = new Set(selected.value);
    for (const id of ids) {
      if (isOn) next.delete(id);
      else next.add(id);
    }
    selected.value = next;
  };
  return html`<label class="select"><input type="checkbox" aria-label=${label} checked=${isOn} onChange=${flip} />${words}</label>`;
}

const PlainCard = ({ columns: [first, ...others], item }) => html`
  <div class="card-line"><span class="clip">${first.cell(item)}</span></div>
  <dl class="card-facts">
    ${others.map(({ id, title, cell }) => html`<div key=${id}><dt>${title}</dt><dd>${cell(item)}</dd></div>`)}
  </dl>
`;

/**
 * @param {object} props
 * @param {string} props.label Names the table for a screen reader.
 * @param {object[]} props.columns See the head of this file.
 * @param {any[]|undefined} props.rows undefined while they load.
 * @param {Error|null} [props.error] Why they do not come; the page says it.
 * @param {(row: any) => string} props.id
 * @param {(row: any) => any} [props.card] A row without room for its columns, `cardHeight` pixels high; without it the cells stand below
 *   each other, two in a line.
 * @param {import("@preact/signals").Signal<string[]|null>} [props.room] Of `useColumns`.
 * @param {(row: any) => boolean} [props.isCurrent] Whether the row is the one that is open.
 * @param {import("@preact/signals").Signal<Set<string>>} [props.selected] Ids; makes rows selectable.
 * @param {(row: any) => string} [props.name] What the check box of a row selects.
 * @param {number} [props.total] Rows in all, if more can be loaded.
 * @param {string} [props.order] `asc` if the API sorts in ascending order.
 * @param {(order: string|null) => void} [props.onOrder]
 * @param {() => void} [props.onEnd] Called when the end comes into sight, if more can be loaded.
 */
export function Table(props) {
  const { label, room, rows, error, id, card, isCurrent, selected, total, order, onOrder, onEnd } = props;
  const table = useRef(null);
  const body = useRef(null);
  const { sorted, sort, turn } = useSorted(rows ?? [], props.columns);
  const fitting = useRoom(table, props.columns, selected ? SELECT : 0);
  const isCards = !fitting;
  const columns = fitting ?? props.columns;
  useLayoutEffect(() => {
    if (!room) return;
    const shown = isCards && card ? [] : columns;
    const next = isNarrow.value && card ? null : props.columns.filter((column) => !shown.includes(column)).map((column) => column.id);
    if (String(next) !== String(room.value)) room.value = next;
  });
  const plainHeight = AROUND + LINE * (1 + Math.ceil((columns.length - 1) / 2));
  const height = isCards ? (props.cardHeight ?? plainHeight) : ROW;
  const [first, last] = useSight(body, sorted.length, height);
  useLayoutEffect(() => {
    if (onEnd && rows && last >= rows.length) onEnd();
  }, [last, rows?.length]);
  useEffect(() => {
    if (rows) sayResult(`${label}: ${count(total ?? rows.length, "row")}${total === undefined && onEnd ? " and more" : ""}`);
  });
  useSay(selected?.value.size && `${number(selected.value.size)} selected`);
  if (!rows && error) return null;
  const tracks = isCards ? ["minmax(0, 1fr)"] : columns.map((column) => roomOf(column).track);
  const grid = { gridTemplateColumns: [selected && `${SELECT}px`, ...tracks].filter(Boolean).join(" ") };
  // Cards keep what can be pressed in the head.
  const headings = isCards ? columns.filter((column) => isSortable(column, onOrder)) : columns;
  const row = (item, place) => html`
    <div key=${id(item)} role="row" data-row aria-rowindex=${place + 2} style=${{ height: `${height}px` }}
      class=${classes("row", isCards && "as-card", isCurrent?.(item) && "current", selected?.value.has(id(item)) && "selected")}>
      ${selected && html`<div role="cell" class="cell"><${Select} ids=${[id(item)]} selected=${selected} label=${`Select ${plain(props.name(item))}`} /></div>`}
      ${isCards
        ? html`<div role="cell" class="cell whole" aria-colspan=${headings.length || 1}>${card ? card(item) : html`<${PlainCard} columns=${columns} item=${item} />`}</div>`
        : columns.map(
            (column, at) => html`
              <div key=${column.id} role=${at ? "cell" : "rowheader"} class=${classes("cell", column.isNumber && "number")}>
                ${column.cell(item)}
              </div>
            `,
          )}
    </div>
  `;
  return html`
    <div class=${classes("table grid", isCards && "cards")} ref=${table} style=${grid} role="table" aria-label=${label} aria-rowcount=${total === undefined && onEnd ? -1 : (total ?? sorted.length) + 1}>
      <div role="rowgroup" class="head">
        <div role="row" aria-rowindex="1" class="row">
          ${selected && html`<div role="columnheader" class="cell"><${Select} ids=${sorted.map(id)} selected=${selected} label="Select all rows" words=${isCards && "Select all"} /></div>`}
          ${headings.map((column) => html`<${Heading} key=${column.id} ...${{ column, sort, turn, order, onOrder }} />`)}
          ${!headings.length && html`<div role="columnheader" class="cell unseen">${label}</div>`}
        </div>
      </div>
      <div role="rowgroup" class="body" ref=${body}
        style=${{ paddingTop: `${first * height}px`, paddingBottom: `${(sorted.length - last) * height}px` }}>
        ${sorted.slice(first, last).map((item, place) => row(item, first + place))}
      </div>
      ${!rows && html`<${Skeleton} rows=${8} height=${ROW - 12} />`}
    </div>
  `;
}

/** The end of a list with more rows: why they failed to load, and a button that loads them. */
export const More = ({ pages: { fault, more }, children = "Show more" }) => html`
  ${fault && html`<p class="more bad" role="alert">${fault}</p>`}
  <p class="more"><${Button} act=${more}>${children}<//></p>
`;
