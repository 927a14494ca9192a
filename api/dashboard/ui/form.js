/** Fields of forms and filters. A label stands above its field, and help or a fault below it. */

import { place, setQuery } from "../core/route.js";
import { cloneElement, html, useEffect, useLayoutEffect, useRef, useState } from "../core/view.js";
import { Icon } from "./icons.js";
import { Menu } from "./basics.js";
import { wrong } from "./overlay.js";
import { awaitResult } from "./say.js";

/**
 * One field, which also shows why the service refuses it.
 * @param {{id: string, label: string, help?: string, fault?: string, children: any}} props `children` is the control
 *   with the same id: the parameter of the API.
 */
export function Field({ id, label, help, fault, children }) {
  const isRefused = wrong.value.id === id;
  useEffect(() => () => wrong.peek().id === id && (wrong.value = {}), []);
  const said = fault || (isRefused && wrong.value.message);
  const marks = { "aria-invalid": said ? "true" : undefined, "aria-describedby": help || said ? `${id}-help` : undefined };
  return html`
    <div class="field" onInput=${() => isRefused && (wrong.value = {})}>
      <label for=${id}>${label}</label>
      ${cloneElement(children, marks)}
      ${help && !said && html`<p class="help" id=${`${id}-help`}>${help}</p>`}
      ${said && html`<p class="fault" id=${`${id}-help`} role="alert">${said}</p>`}
    </div>
  `;
}

/** A field with one line of text. `onInput` gets the text. */
export const TextField = ({ id, label, help, fault, value, onInput, type = "text", ...rest }) => html`
  <${Field} ...${{ id, label, help, fault }}>
    <input id=${id} type=${type} value=${value} autocomplete="off" dir="auto"
      onInput=${(event) => onInput?.(event.currentTarget.value)} ...${rest} />
  <//>
`;

/** A choice. @param {{options: [string, string][]}} props Values and their words. */
export const SelectField = ({ id, label, help, value, options, onChange }) => html`
  <${Field} ...${{ id, label, help }}>
    <select id=${id} value=${value} onChange=${(event) => onChange(event.currentTarget.value)}>
      ${options.map(([key, text]) => html`<option key=${key} value=${key} selected=${key === value}>${text}</option>`)}
    </select>
  <//>
`;

/**
 * Filters as chips whose values stand in the address.
 * @param {{filters: {name: string, title: string, options?: [string, string][], check?: (text: string) => string|null}[]}} props
 *   `name` is the query's; a filter without options takes a text, unless `check` has a fault of it.
 */
export function Filters({ filters }) {
  const { query } = place.value;
  const active = filters.filter(({ name }) => query.get(name));
  const values = active.map(({ name }) => `${name}=${query.get(name)}`).join();
  const before = useRef(values);
  useEffect(() => {
    if (before.current !== values) awaitResult();
    before.current = values;
  }, [values]);
  const clear = () => setQuery(Object.fromEntries(active.map(({ name }) => [name, null])));
  return html`
    <div class="filters" role="group" aria-label="Filters">
      <${Menu} icon="filter" label="Filter" name="Add a filter">
        ${filters.map((filter) => html`<${Choice} key=${filter.name} filter=${filter} value=${query.get(filter.name) ?? ""} />`)}
      <//>
      ${active.map(({ name, title, options }) => {
        const value = query.get(name);
        const words = options?.find(([key]) => key === value)?.[1] ?? value;
        return html`
          <button key=${name} type="button" class="chip" aria-label=${`Remove the filter ${title} ${words}`}
            onClick=${() => setQuery({ [name]: null })}>
            ${title}: <strong>${words}</strong><${Icon} name="close" />
          </button>
        `;
      })}
      ${active.length > 1 && html`<button type="button" class="button quiet" onClick=${clear}>Clear</button>`}
    </div>
  `;
}

function Choice({ filter: { name, title, options, placeholder, check }, value }) {
  const id = `filter-${name}`;
  if (options)
    return html`<${SelectField} id=${id} label=${title} value=${value} options=${[["", "any"], ...options]}
      onChange=${(chosen) => setQuery({ [name]: chosen })} />`;
  return html`<${LateField} id=${id} label=${title} value=${value} placeholder=${placeholder} check=${check}
    onDone=${(text) => setQuery({ [name]: text })} />`;
}

/** A text that counts at Enter, or when the user leaves the field, unless by Escape out of a menu. */
export function LateField({ id, label, value, onDone, check = () => null, ...rest }) {
  const [text, setText] = useState(value);
  const [fault, setFault] = useState(null);
  /** Where the user typed what does not count yet: a page that goes away takes the focus from its fields. */
  const typedAt = useRef(null);
  useEffect(() => {
    setText(value);
    setFault(value ? check(value) : null);
  }, [value]);
  // The address has changed, and the field stays.
  useLayoutEffect(() => {
    if (typedAt.current !== null) typedAt.current = place.peek().text;
  });
  function type(typed) {
    typedAt.current = place.peek().text;
    setText(typed);
  }
  function done() {
    typedAt.current = null;
    const found = text.trim() ? check(text.trim()) : null;
    setFault(found);
    if (!found) onDone(text.trim());
  }
  function leave({ currentTarget: input }) {
    // A click beside a menu closes it after the field has lost the focus, Escape before.
    if (input.closest("details:not([open])")) {
      setText(value);
      setFault(value ? check(value) : null);
    }
    else if (typedAt.current === place.peek().text) done();
  }
  return html`<${TextField} id=${id} label=${label} value=${text} fault=${fault} onInput=${type}
    onKeyDown=${(event) => event.key === "Enter" && done()} onBlur=${leave} ...${rest} />`;
}
