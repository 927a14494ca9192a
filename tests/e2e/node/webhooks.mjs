// A receiver of webhooks that verifies each with the SDK: `node webhooks.mjs PORT SECRET CALLS FAILING`.
import { appendFileSync } from "node:fs";
import { createServer } from "node:http";
import OpenAI from "openai";

const [port, secret, calls, failing] = process.argv.slice(2);
const failed = {};
const client = new OpenAI({ apiKey: "unused" });

createServer(async (request, response) => {
  const parts = [];
  for await (const part of request) parts.push(part);
  const found = { id: request.headers["webhook-id"], error: null };
  try {
    const event = await client.webhooks.unwrap(Buffer.concat(parts).toString(), request.headers, secret);
    Object.assign(found, { type: event.type, batch: event.data.id, event: event.id });
  } catch (error) {
    found.error = String(error);
  }
  const fails = Math.random() < Number(failing) && (failed[found.id] ?? 0) < 3;
  failed[found.id] = (failed[found.id] ?? 0) + fails;
  found.status = fails ? 500 : 200;
  appendFileSync(calls, JSON.stringify(found) + "\n");
  response.writeHead(found.status).end();
}).listen(Number(port), "127.0.0.1");
