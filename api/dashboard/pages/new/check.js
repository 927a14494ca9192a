/** A first look at an input file in the browser: Tidemill checks every line later by the same rules, and more. */

import { texts } from "../batch/texts.js";

/** Bytes to check, more for a longer first line. By default services accept lines of 8 MiB. */
const HEADS = [1 << 20, 9 << 20, 65 << 20];
const FAULTS_MAX = 20;
const SHOWN_MAX = 8;
const PIECE = 120;
/** The field that a body needs, by endpoint, where there is one. */
const NEEDED = { "/v1/chat/completions": "messages", "/v1/completions": "prompt", "/v1/embeddings": "input", "/v1/messages": "messages" };

/** @typedef {{line: number, field: string, message: string, piece: string}} Fault */
/** @typedef {{line: number, id: string, model: string, text: string}} Sample */

/** The fault of a line, as a field and a sentence; null if there is none. */
function faultIn(request, seen, endpoint, models) {
  if (request === null || typeof request !== "object" || Array.isArray(request)) return ["", "The line is not a JSON object."];
  const { custom_id: id, method, url, body } = request;
  if (typeof id !== "string" || !id) return ["custom_id", "It is missing, or not a text."];
  if (seen.has(id)) return ["custom_id", `Line ${seen.get(id)} has the same one.`];
  if (method !== "POST") return ["method", "It must be POST."];
  if (typeof url !== "string") return ["url", "It is missing."];
  if (endpoint && url !== endpoint) return ["url", `All lines need the one of the first line, ${endpoint}.`];
  if (body === null || typeof body !== "object" || Array.isArray(body)) return ["body", "It is missing, or not a JSON object."];
  if (typeof body.model !== "string" || !body.model) return ["body.model", "It is missing."];
  if (models?.size && !models.has(body.model)) return ["body.model", "There is no such model here."];
  const needed = NEEDED[url];
  if (needed && (body[needed] === undefined || body[needed] === null)) return [`body.${needed}`, "It is missing."];
  if (body.stream === true) return ["body.stream", "A batch cannot stream."];
  return null;
}

const promptOf = ({ messages, input, prompt, query }) =>
  Array.isArray(messages) ? texts({ content: messages.at(-1)?.content })[0] : [input, prompt, query].find((value) => typeof value === "string");

/** The value of a faulty field, cut. */
function piece(text, request, field) {
  const value = field ? field.split(".").reduce((part, name) => part?.[name], request) : undefined;
  return (value === undefined ? text : JSON.stringify(value)).slice(0, PIECE);
}

/**
 * The complete lines at the beginning of a file; null if even the largest part holds no complete first line.
 * @param {File} file
 */
async function headOf(file) {
  for (const bytes of HEADS) {
    const lines = (await file.slice(0, bytes).text()).replace(/^\ufeff/, "").split("\n");
    if (file.size <= bytes) return lines;
    lines.pop();
    if (lines.some((line) => line.trim())) return lines;
  }
  return null;
}

/**
 * Look at the first lines of a file.
 * @param {File} file
 * @param {Set<string>} [models] The names that a line may have as its model; without them any.
 * @returns {Promise<{samples: Sample[], faults: Fault[], endpoint: string|null}>}
 */
export async function check(file, models) {
  const found = { samples: [], faults: [], endpoint: null };
  const lines = await headOf(file);
  if (lines === null) found.faults.push({ line: 1, field: "", message: "It is too long for this page: upload the file with the API.", piece: "" });
  const seen = new Map();
  lines?.forEach((line, place) => {
    if (line.trim() && found.faults.length < FAULTS_MAX) look(line, place + 1, found, seen, models);
  });
  if (lines?.every((line) => !line.trim())) found.faults.push({ line: 1, field: "", message: "The file has no line.", piece: "" });
  return found;
}

function look(text, line, found, seen, models) {
  let request;
  try {
    request = JSON.parse(text);
  } catch (error) {
    found.faults.push({ line, field: "", message: `The line is not JSON: ${error.message}.`, piece: text.slice(0, PIECE) });
    return;
  }
  const fault = faultIn(request, seen, found.endpoint, models);
  if (fault) found.faults.push({ line, field: fault[0], message: fault[1], piece: piece(text, request, fault[0]) });
  if (typeof request?.custom_id === "string" && !seen.has(request.custom_id)) seen.set(request.custom_id, line);
  if (typeof request?.url === "string") found.endpoint ??= request.url;
  if (found.samples.length < SHOWN_MAX && request?.body && typeof request.body === "object")
    found.samples.push({
      line,
      id: String(request.custom_id ?? ""),
      model: String(request.body.model ?? ""),
      text: String(promptOf(request.body) ?? JSON.stringify(request.body)).slice(0, 200),
    });
}

/** `name=value` lines as an object; null for a line without `=`. */
export function metadataOf(text) {
  const pairs = text.split("\n").filter((line) => line.trim()).map((line) => line.split(/=(.*)/s).slice(0, 2).map((part) => part.trim()));
  return pairs.every(([name, value]) => name && value !== undefined) ? Object.fromEntries(pairs) : null;
}
