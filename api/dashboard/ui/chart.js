/** Charts by uPlot, which is loaded when the first one is shown; sparklines are one path. */

import { brief, clock, DAY, day } from "../core/format.js";
import { isSystemDark, theme, zone } from "../core/prefs.js";
import { html, useEffect, useRef, useState } from "../core/view.js";

/** Points that a key moves by. */
const STEPS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, Home: -Infinity, End: Infinity };
/** Seconds of a chart whose axis shows seconds. */
const SHORT = 600;
let loading = null;

function library() {
  loading ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = "vendor/uPlot.iife.min.js";
    script.onload = () => resolve(globalThis.uPlot);
    script.onerror = () => {
      loading = null;
      reject(new Error("The chart did not load."));
    };
    const style = document.createElement("link");
    style.rel = "stylesheet";
    style.href = "vendor/uPlot.min.css";
    document.head.append(style, script);
  });
  return loading;
}

/** A colour of the style sheet, as the theme has it now. */
function colour(element, name) {
  element.style.color = `var(--${name})`;
  const found = getComputedStyle(element).color;
  element.style.color = "";
  return found;
}

/** The angles of the stripes of areas, from below to above, so that colour never stands alone; the first has none. */
const ANGLES = [null, 45, 135, 90, 0, 22];
const angleOf = (series, one) => ANGLES[series.filter(({ isLine }) => !isLine).indexOf(one)] ?? null;
/** Pixels from one stripe to the next. */
const STRIPE = 6;

/** What fills an area, or a bar, which hides the higher ones behind it. */
function filled(holder, tone, angle, isBar) {
  const tile = document.createElement("canvas");
  const size = Math.round(STRIPE * devicePixelRatio);
  tile.width = tile.height = size;
  const paint = tile.getContext("2d");
  function cover(name, alpha, height = size) {
    paint.fillStyle = colour(holder, name);
    paint.globalAlpha = alpha;
    paint.fillRect(0, 0, size, height);
  }
  if (isBar) cover("surface", 1);
  cover(tone, isBar && angle === null ? 1 : 0.25);
  if (angle !== null) cover(tone, isBar ? 1 : 0.5, size / 3);
  const pattern = paint.createPattern(tile, "repeat");
  pattern.setTransform(new DOMMatrix().rotate(angle ?? 0));
  return pattern;
}

/** The same in the legend. */
const swatch = (tone, angle) => ({
  background: angle === null ? `var(--${tone})` : `repeating-linear-gradient(${angle}deg, var(--${tone}) 0 2px, color-mix(in srgb, var(--${tone}) 25%, var(--surface)) 2px 4px)`,
});

/** The series in drawing order: areas from the top down, so that lower ones stay visible, then lines. */
const drawn = (series) => [...series.filter(({ isLine }) => !isLine).reverse(), ...series.filter(({ isLine }) => isLine)];

/** The values of series in drawing order; areas are cumulative sums from below. */
function stacked(series) {
  const sums = new Map();
  let below = null;
  for (const one of series.filter(({ isLine }) => !isLine)) {
    below = one.values.map((value, place) => (value ?? 0) + (below?.[place] ?? 0));
    sums.set(one, below);
  }
  return drawn(series).map((one) => sums.get(one) ?? one.values);
}

/**
 * A chart over time. It is a slider through its points, whose values stand below it.
 * @param {object} props
 * @param {string} props.title
 * @param {string} props.unit Of the values, as "lines/s".
 * @param {number[]} props.times Unix seconds.
 * @param {{title: string, colour: string, values: (number|null)[], isLine?: boolean, isRight?: boolean}[]} props.series
 *   From below to above; areas are stacked, and lines are not. `colour` is a name of the style sheet: running, done,
 *   failed, part. A line may have the axis at the right.
 * @param {string} [props.right] The unit of that axis.
 * @param {number} [props.height] Pixels.
 * @param {(value: number) => string} [props.show] Writes a value.
 * @param {boolean} [props.isByDay] Times are midnights in UTC, and each has a bar, whose height the legend has as `All`.
 */
export function Chart({ title, unit, right, times, series, height = 200, show = brief, isByDay }) {
  const holder = useRef(null);
  const chart = useRef(null);
  const [place, setPlace] = useState(null);
  const [fault, setFault] = useState(null);
  const shown = place === null || place >= times.length ? times.length - 1 : place;
  const data = [times, ...stacked(series)];
  const shape = `${series.map(({ title: name }) => name).join()} ${theme.value} ${isSystemDark.value} ${zone.value} ${height}`;
  useEffect(() => {
    let isGone = false;
    let watcher = null;
    library().then((uPlot) => {
      if (isGone || !holder.current) return;
      chart.current = new uPlot(options({ holder: holder.current, series, height, unit, right, isByDay, setPlace }), data, holder.current);
      watcher = new ResizeObserver(([{ contentRect }]) =>
        chart.current?.setSize({ width: Math.floor(contentRect.width), height }),
      );
      watcher.observe(holder.current);
    }).catch((error) => isGone || setFault(error.message));
    return () => {
      isGone = true;
      watcher?.disconnect();
      chart.current?.destroy();
      chart.current = null;
    };
  }, [shape]);
  useEffect(() => chart.current?.setData(data), [times, series]);
  function step(event) {
    const by = STEPS[event.key];
    if (!by || !times.length) return;
    event.preventDefault();
    const next = Math.min(times.length - 1, Math.max(0, shown + by));
    const uPlot = chart.current;
    uPlot?.setCursor({ left: uPlot.valToPos(times[next], "x"), top: 10 });
    setPlace(next);
  }
  const at = times.length ? (isByDay ? day : clock)(times[shown], 8) : "";
  const valueOf = ({ values }) => (typeof values[shown] === "number" ? show(values[shown]) : "–");
  return html`
    <figure class="chart">
      ${fault && html`<p class="bad" role="alert">${fault}</p>`}
      <div class="plot" ref=${holder} style=${{ height: `${height}px` }} role="slider" tabindex="0"
        aria-label=${`${title}, ${unit}`} aria-valuemin="0" aria-valuemax=${Math.max(0, times.length - 1)} aria-valuenow=${Math.max(0, shown)}
        aria-valuetext=${[at, ...series.map((one) => `${one.title} ${valueOf(one)}`)].join(", ")} onKeyDown=${step} />
      <figcaption class="legend">
        <span class="at">${at}</span>
        ${series.map(
          (one) => html`
            <span key=${one.colour} class="entry" title=${one.title}>
              <i class=${one.isLine ? "swatch line" : "swatch"} style=${swatch(one.colour, angleOf(series, one))} />
              <span class="clip">${one.title}</span> <b>${valueOf(one)}</b>
            </span>
          `,
        )}
        ${isByDay && series.length > 1 && html`<span class="entry">All <b>${show(series.reduce((sum, { values }) => sum + values[shown], 0))}</b></span>`}
        <span class="unit">${unit}${series.some(({ isRight }) => isRight) && `; right: ${right}`}</span>
      </figcaption>
    </figure>
  `;
}

/** The ticks of an axis, with as many digits as tell them apart. */
function ticked(_, ticks) {
  for (let digits = 1; digits < 6; digits += 1) {
    const texts = ticks.map((value) => new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: digits }).format(value));
    if (digits === 5 || new Set(texts).size === texts.length) return texts;
  }
}

const fromZero = (_, low, high) => [Math.min(0, low ?? 0), Math.max(high ?? 0, 1e-9) * 1.1];

/** Bars of days, each around its midnight; a higher one stands behind the lower ones. */
const daily = () => ({
  x: { time: false, range: (_, low, high) => [low - DAY / 2, high + DAY / 2] },
  axis: { incrs: [1, 2, 7, 14, 28, 56, 112].map((days) => days * DAY), values: (_, ticks) => ticks.map((at) => day(at).slice(5)), grid: { show: false } },
  bar: { paths: globalThis.uPlot.paths.bars({ size: [0.7, 40] }), width: 0 },
});

function options({ holder, series, height, unit, right, isByDay, setPlace }) {
  const text = colour(holder, "muted");
  const line = colour(holder, "hairline");
  const days = isByDay ? daily() : null;
  const axis = { stroke: text, grid: { stroke: line, width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
  return {
    width: Math.max(100, Math.floor(holder.getBoundingClientRect().width)),
    height,
    legend: { show: false },
    cursor: { drag: { x: false, y: false }, points: { size: 6 } },
    scales: { ...(days && { x: days.x }), y: { range: fromZero }, right: { range: fromZero } },
    axes: [
      { ...axis, size: 28, space: 90, values: (_, ticks) => ticks.map((at) => clock(at, ticks.at(-1) - ticks[0] < SHORT ? 8 : 5)), ...days?.axis },
      { ...axis, size: 52, values: ticked },
      ...(series.some(({ isRight }) => isRight) ? [{ ...axis, scale: "right", side: 1, size: 40, grid: { show: false }, values: ticked }] : []),
    ],
    bands: days ? [] : series.filter(({ isLine }) => !isLine).slice(1).map((_, place) => ({ series: [place + 1, place + 2] })),
    series: [
      {},
      ...drawn(series).map((one) => ({ ...one, angle: angleOf(series, one) })).map(({ title, colour: tone, isLine, isRight, angle }) => ({
        label: `${title} (${isRight ? right : unit})`,
        scale: isRight ? "right" : "y",
        spanGaps: !isLine,
        stroke: colour(holder, tone),
        width: 1.5,
        dash: isLine ? [5, 4] : undefined,
        fill: isLine ? undefined : filled(holder, tone, angle, isByDay),
        points: { show: false },
        ...days?.bar,
      })),
    ],
    hooks: { setCursor: [({ cursor: { idx } }) => setPlace(idx ?? null)] },
  };
}

/** A line without axes, for a card or a row: the last values, and how many. */
export function Spark({ values, label, width = 120, height = 20, tone = "running" }) {
  if (values.length < 2) return html`<span class="spark" style=${{ height: `${height}px` }} />`;
  const high = Math.max(...values);
  const low = Math.min(0, ...values);
  const span = high - low || 1;
  const points = values.map((value, place) => {
    const x = (place * width) / (values.length - 1);
    const y = height - 1 - ((value - low) / span) * (height - 2);
    return `${x.toFixed(1)} ${y.toFixed(1)}`;
  });
  return html`
    <svg class=${`spark ${tone}`} viewBox=${`0 0 ${width} ${height}`} height=${height} preserveAspectRatio="none"
      role="img" aria-label=${label}>
      <path class="area" d=${`M0 ${height}L${points.join("L")}L${width} ${height}z`} />
      <path class="stroke" d=${`M${points.join("L")}`} vector-effect="non-scaling-stroke" />
    </svg>
  `;
}
