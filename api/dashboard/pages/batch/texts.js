/** What an answer says: text, refusals and calls of tools, without the reasoning. */

export const list = (value) => (Array.isArray(value) ? value : []);

/** Types of parts that are not the answer, as schemas/endpoints.py has them. */
const SILENT = new Set(["reasoning", "thinking"]);

/** A call of a tool: `look({"q": "x"})`; null of anything else. */
function callOf(part) {
  const { name, arguments: given, input } = part?.function ?? part ?? {};
  const words = given ?? input;
  return name && words !== undefined ? `${name}(${typeof words === "string" ? words : JSON.stringify(words)})` : null;
}

const partOf = (part) =>
  typeof part === "string" ? part : (part?.text ?? part?.refusal ?? callOf(part) ?? `[${part?.type ?? "part"}]`);

const textOf = (content) =>
  typeof content === "string"
    ? content
    : Array.isArray(content)
      ? content.filter((part) => !SILENT.has(part?.type)).map(partOf).join("\n")
      : null;

const messageOf = (message) =>
  [textOf(message?.content) || message?.refusal, ...list(message?.tool_calls).map(callOf)].filter(Boolean).join("\n") || null;

/** The texts in an answer of any endpoint. */
export function texts(body) {
  if (!body || typeof body !== "object") return [];
  const found = [
    ...list(body.choices).map((choice) => messageOf(choice?.message) ?? choice?.text),
    ...list(body.output)
      .filter((item) => !SILENT.has(item?.type))
      .map((item) => textOf(item?.content) ?? callOf(item)),
    textOf(body.content),
    typeof body.text === "string" ? body.text : null,
  ];
  return found.filter((text) => typeof text === "string" && text !== "");
}
