/** Elements without HTML text: whatever a user sent stays text. */

/**
 * Build an element.
 * @param {string} tag
 * @param {Object<string, any>} attributes `onclick` and the like take a function; true is an attribute without a
 *   value, and one that is null or false is left out.
 * @param {...(Node|string|number|null)} children null is left out.
 * @returns {HTMLElement}
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== false) element.setAttribute(name, String(value));
  }
  element.append(
    ...children.filter((child) => child !== null).map((child) => (child instanceof Node ? child : String(child))),
  );
  return element;
}

/**
 * Put children in place, but for those that are there already: what somebody has opened or marked stays so, and the
 * focus stays where it was.
 * @param {HTMLElement} place Filled by this alone.
 * @param {...(Node|string|null)} children null is left out.
 */
export function put(place, ...children) {
  const given = children.filter((child) => child !== null);
  const held = place.contains(document.activeElement) ? document.activeElement.dataset.focus : undefined;
  given.forEach((child, at) => {
    const node = child instanceof Node ? child : document.createTextNode(child);
    node.made = node.outerHTML ?? node.data;
    const there = place.childNodes[at];
    if (!there) place.append(node);
    else if (there.made !== node.made) there.replaceWith(node);
  });
  while (place.childNodes.length > given.length) place.lastChild.remove();
  if (held !== undefined && !place.contains(document.activeElement))
    place.querySelector(`[data-focus="${CSS.escape(held)}"]`)?.focus();
}

/** A table row's cells. */
export const cells = (...values) => values.map((value) => h("td", {}, value));

/** A table with a caption for who does not see it. */
export function table(caption, heads, body) {
  const row = h("tr", {}, ...heads.map((head) => h("th", { scope: "col" }, head)));
  return h("table", {}, h("caption", { class: "unseen" }, caption), h("thead", {}, row), body);
}

/** Names and values, one beside the other; a value of null is left out with its name. */
export function facts(pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined);
  return h("dl", { class: "facts" }, ...shown.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}
