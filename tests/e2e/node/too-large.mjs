// A stream that is larger than the server takes: the SDK must see the status, not a broken connection.
//
// `node too-large.mjs BASE_URL KEY FILE`

import assert from "node:assert/strict";
import { createReadStream } from "node:fs";
import OpenAI from "openai";

const [baseURL, apiKey, path] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey });
try {
  await client.files.create({ file: createReadStream(path), purpose: "batch" });
} catch (error) {
  assert.equal(error.status, 413, `${error}`);
  assert.equal(error.param, "file");
  assert.ok(error.requestID);
  process.exit(0);
}
throw new Error("it was not refused");
