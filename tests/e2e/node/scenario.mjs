// What a user of the official TypeScript SDK does, from upload to deletion; run with each version of it.
//
// `node scenario.mjs BASE_URL KEY FOLDER`: exits with 0 if all went as it should, and prints what it did.

import assert from "node:assert/strict";
import { createReadStream, writeFileSync } from "node:fs";
import { join } from "node:path";
import OpenAI, { toFile } from "openai";

const [baseURL, apiKey, folder] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey });
const ENDED = ["completed", "failed", "expired", "cancelled"];
const BATCH_MS_MAX = 900_000;
const POLL_MS = 200;
const CHAT = "/v1/chat/completions";
const BODIES = {
  [CHAT]: { model: "chat", messages: [{ role: "user", content: "hello" }] },
  "/v1/completions": { model: "chat", prompt: "hello" },
  "/v1/embeddings": { model: "embed", input: ["hello", "you"] },
  "/v1/responses": { model: "chat", input: "hello" },
};

function lines(url, ids, more = {}) {
  const requests = ids.map((id) => ({ custom_id: id, method: "POST", url, body: { ...BODIES[url], user: id, ...more } }));
  return requests.map((request) => JSON.stringify(request) + "\n").join("");
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const parsed = (text) => text.trimEnd().split("\n").map((line) => JSON.parse(line));
const text = async (id) => (await client.files.content(id)).text();

async function ended(id) {
  const giveUp = performance.now() + BATCH_MS_MAX;
  while (performance.now() < giveUp) {
    const batch = await client.batches.retrieve(id);
    if (ENDED.includes(batch.status)) return batch;
    await pause(POLL_MS);
  }
  throw new Error(`${id} has not ended`);
}

// One that is cancelled before its lines are published has no files.
async function running(id) {
  const giveUp = performance.now() + BATCH_MS_MAX;
  while ((await client.batches.retrieve(id)).status === "validating") {
    assert.ok(performance.now() < giveUp, id);
    await pause(POLL_MS);
  }
}

async function started(content, endpoint = CHAT, more = {}) {
  const file = await client.files.create({ file: await toFile(Buffer.from(content), "in.jsonl"), purpose: "batch" });
  return client.batches.create({ input_file_id: file.id, endpoint, completion_window: "24h", ...more });
}

async function refused(kind, call) {
  try {
    await call();
  } catch (error) {
    assert.ok(error instanceof kind, `${error}`);
    assert.ok(error.requestID);
    return error;
  }
  throw new Error("it was not refused");
}

// A stream without a length, a buffer, and a File all become the same kind of file.
async function uploads() {
  const content = lines("/v1/embeddings", ["a"]);
  const path = join(folder, "named.jsonl");
  writeFileSync(path, content);
  const ways = {
    "named.jsonl": createReadStream(path),
    "buffer.jsonl": await toFile(Buffer.from(content), "buffer.jsonl"),
    "file.jsonl": new File([content], "file.jsonl"),
  };
  for (const [name, way] of Object.entries(ways)) {
    const file = await client.files.create({ file: way, purpose: "batch" });
    assert.deepEqual([file.filename, file.bytes, file.purpose], [name, content.length, "batch"]);
    assert.equal((await client.files.waitForProcessing(file.id)).status, "processed");
    assert.equal(await text(file.id), content);
    assert.ok(file._request_id);
  }
  const expires_after = { anchor: "created_at", seconds: 3600 };
  const file = await client.files.create({ file: createReadStream(path), purpose: "batch", expires_after });
  assert.equal(file.expires_at, file.created_at + 3600);
}

async function endpoints() {
  const made = [];
  for (const url of Object.keys(BODIES)) {
    made.push([url, await started(lines(url, ["a", "b", "c"]), url, { metadata: { for: url } })]);
  }
  for (const [url, { id }] of made) {
    const batch = await ended(id);
    assert.equal(batch.status, "completed");
    assert.deepEqual(batch.request_counts, { total: 3, completed: 3, failed: 0 });
    assert.deepEqual([batch.endpoint, batch.metadata], [url, { for: url }]);
    assert.ok(!batch.error_file_id);
    assert.ok(batch.usage.total_tokens > 0);
    const found = parsed(await text(batch.output_file_id));
    assert.deepEqual(found.map((line) => line.custom_id), ["a", "b", "c"]);
    assert.ok(found.every((line) => line.response.status_code === 200 && line.error === null));
  }
}

async function failures() {
  const batch = await ended((await started(lines(CHAT, ["a"]) + lines(CHAT, ["b"], { stop: "refuse" }))).id);
  assert.deepEqual(batch.request_counts, { total: 2, completed: 1, failed: 1 });
  const [line] = parsed(await text(batch.error_file_id));
  assert.deepEqual([line.custom_id, line.response.status_code], ["b", 400]);
  const failed = await ended((await started(lines(CHAT, ["a", "a", "b"]) + "{\n")).id);
  assert.equal(failed.status, "failed");
  const faults = failed.errors.data.map((fault) => [fault.line, fault.code]);
  assert.deepEqual(faults, [[2, "duplicate_custom_id"], [4, "invalid_json_line"]]);
}

async function pages() {
  const made = [];
  for (let number = 0; number < 3; number += 1) made.push((await started(lines(CHAT, ["a"]))).id);
  const listed = [];
  for await (const batch of client.batches.list({ limit: 1 })) listed.push(batch);
  const times = listed.map((batch) => batch.created_at);
  assert.deepEqual(times, [...times].sort((one, other) => other - one));
  const names = new Set(listed.map((batch) => batch.id));
  assert.ok(made.every((id) => names.has(id)));
  assert.equal(names.size, listed.length);
  const files = [];
  for await (const file of client.files.list({ limit: 1, purpose: "batch" })) files.push(file.id);
  assert.equal(new Set(files).size, files.length);
}

async function cancelling() {
  const { id } = await started(lines(CHAT, ["a", "b"], { stop: "wait" }));
  await running(id);
  const cancelled = await client.batches.cancel(id);
  assert.ok(["cancelling", "cancelled"].includes(cancelled.status));
  assert.ok(cancelled.cancelling_at);
  const batch = await ended(id);
  assert.equal(batch.status, "cancelled");
  assert.equal((await client.batches.cancel(id)).status, "cancelled");
  const errors = parsed(await text(batch.error_file_id));
  assert.deepEqual(errors.map((line) => line.error.code), ["batch_cancelled", "batch_cancelled"]);
  const done = await ended((await started(lines(CHAT, ["a"]))).id);
  await refused(OpenAI.ConflictError, () => client.batches.cancel(done.id));
}

async function deletion() {
  const { input_file_id: id } = await started(lines(CHAT, ["a"]));
  const file = await client.files.create({ file: await toFile(Buffer.from(lines(CHAT, ["a"]))), purpose: "batch" });
  assert.equal((await client.files.delete(file.id)).deleted, true);
  await refused(OpenAI.NotFoundError, () => client.files.retrieve(file.id));
  await refused(OpenAI.NotFoundError, () => client.files.content(file.id));
  assert.equal((await client.files.retrieve(id)).id, id);
}

async function refusals() {
  const stranger = new OpenAI({ baseURL, apiKey: "sk-wrong" });
  const unknown = await refused(OpenAI.AuthenticationError, () => stranger.batches.list());
  assert.equal(unknown.code, "invalid_api_key");
  await refused(OpenAI.NotFoundError, () => client.batches.retrieve("batch_none"));
  await refused(OpenAI.NotFoundError, () => client.files.retrieve("file-none"));
  const wrong = await refused(OpenAI.BadRequestError, () => started(lines(CHAT, ["a"]), "/v1/none"));
  assert.deepEqual([wrong.param, wrong.code], ["endpoint", "invalid_value"]);
  await refused(OpenAI.BadRequestError, () => started(""));
}

for (const step of [uploads, endpoints, failures, pages, cancelling, deletion, refusals]) {
  await step();
  console.log(`${step.name}: as it should be`);
}
