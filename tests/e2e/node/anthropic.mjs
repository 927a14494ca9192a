// What a user of Anthropic's TypeScript SDK does with message batches; run with each version of it.
//
// `node anthropic.mjs BASE_URL KEY`: exits with 0 if all went as it should, and prints what it did.

import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";

const [baseURL, apiKey] = process.argv.slice(2);
const client = new Anthropic({ baseURL, apiKey });
const batches = client.messages.batches;
const BATCH_MS_MAX = 900_000;
const POLL_MS = 200;
const PARAMS = { model: "chat", max_tokens: 16, messages: [{ role: "user", content: "hello" }] };

const requests = (ids, more = {}) => ids.map((custom_id) => ({ custom_id, params: { ...PARAMS, ...more } }));
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function ended(id) {
  const giveUp = performance.now() + BATCH_MS_MAX;
  while (performance.now() < giveUp) {
    const batch = await batches.retrieve(id);
    if (batch.processing_status === "ended") return batch;
    await pause(POLL_MS);
  }
  throw new Error(`${id} has not ended`);
}

async function all(pages) {
  const found = [];
  for await (const each of pages) found.push(each);
  return found;
}

async function success() {
  const odd = 'é\u2028\u0085 \\ " {[ \n';
  const messages = [{ role: "user", content: odd }];
  const made = await batches.create({ requests: [...requests(["a", "b"]), ...requests(["c"], { messages })] });
  assert.equal(made.processing_status, "in_progress");
  assert.equal(made.request_counts.processing, 3);
  const batch = await ended(made.id);
  assert.equal(batch.request_counts.succeeded, 3);
  const lines = await all(await batches.results(batch.id));
  assert.deepEqual(lines.map((line) => line.custom_id), ["a", "b", "c"]);
  assert.equal(lines[2].result.message.content[0].text, `echo: ${odd}`);
}

async function failures() {
  const made = await batches.create({ requests: [...requests(["a"]), ...requests(["b"], { stop: "refuse" })] });
  const batch = await ended(made.id);
  assert.equal(batch.request_counts.errored, 1);
  const [, line] = await all(await batches.results(batch.id));
  assert.equal(line.result.error.error.type, "invalid_request_error");
  const invalid = await ended((await batches.create({ requests: requests(["a"], { max_tokens: "x" }) })).id);
  const [fault] = await all(await batches.results(invalid.id));
  assert.match(fault.result.error.error.message, /^params\.max_tokens: /);
}

async function pages() {
  const made = [];
  for (let i = 0; i < 3; i++) made.unshift((await batches.create({ requests: requests(["a"]) })).id);
  const whole = (await all(batches.list())).map((batch) => batch.id);
  assert.deepEqual((await all(batches.list({ limit: 1 }))).map((batch) => batch.id), whole);
  assert.deepEqual(whole.filter((id) => made.includes(id)), made);
  const up = (await all(batches.list({ before_id: made[2], limit: 1 }))).map((batch) => batch.id);
  assert.deepEqual(up.slice(0, 2), [made[1], made[0]]);
}

async function cancelling() {
  const made = await batches.create({ requests: requests(["a", "b"], { stop: "wait" }) });
  await assert.rejects(batches.results(made.id), Anthropic.AnthropicError);
  await assert.rejects(batches.delete(made.id), Anthropic.ConflictError);
  assert.ok((await batches.cancel(made.id)).cancel_initiated_at);
  const batch = await ended(made.id);
  assert.equal(batch.request_counts.canceled, 2);
  assert.equal((await batches.delete(batch.id)).type, "message_batch_deleted");
  await assert.rejects(batches.retrieve(batch.id), Anthropic.NotFoundError);
}

async function refusals() {
  const stranger = new Anthropic({ baseURL, apiKey: "sk-wrong" });
  await assert.rejects(stranger.messages.batches.list(), Anthropic.AuthenticationError);
  await assert.rejects(batches.retrieve("msgbatch_none"), (error) => {
    assert.ok(error instanceof Anthropic.NotFoundError);
    assert.equal(error.error.error.type, "not_found_error");
    assert.equal(error.requestID, error.error.request_id);
    return true;
  });
  await assert.rejects(batches.create({ requests: requests(["a", "a"]) }), (error) => {
    assert.ok(error instanceof Anthropic.BadRequestError);
    assert.match(error.message, /requests\.1\.custom_id: /);
    return true;
  });
}

async function models() {
  assert.ok((await all(client.models.list())).some((model) => model.id === "chat" && model.type === "model"));
}

for (const step of [success, failures, pages, cancelling, refusals, models]) {
  await step();
  console.log(`${step.name}: as it should be`);
}
