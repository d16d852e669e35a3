// Drives the tasks of 2025-11-25 with the official TypeScript SDK (v1): a tool call that is answered later, and asks on the way.
// usage: node tasks.mjs URL TOKEN
// Prints one JSON line for each thing it saw. Finds the SDK in $WARDGATE_NODE_MODULES.
import { createRequire } from 'node:module';
import path from 'node:path';

const [url, token] = process.argv.slice(2);
const require = createRequire(path.join(process.env.WARDGATE_NODE_MODULES, 'client.cjs'));
const { Client } = require('@modelcontextprotocol/sdk/client/index.js');
const { StreamableHTTPClientTransport } = require('@modelcontextprotocol/sdk/client/streamableHttp.js');
const { CallToolResultSchema, ElicitRequestSchema } = require('@modelcontextprotocol/sdk/types.js');

const out = (line) => console.log(JSON.stringify(line));
const RELATED = 'io.modelcontextprotocol/related-task';
const NAME = 'simulate-research-query';

const client = new Client({ name: 'wardgate-test-client', version: '1' }, { capabilities: { elicitation: {} } });
client.setRequestHandler(ElicitRequestSchema, (request) => {
  out({ asked: request.params.message, about: request.params._meta?.[RELATED]?.taskId ?? null });
  return { action: 'accept', content: { interpretation: 'technical' } };
});
const headers = { Authorization: `Bearer ${token}` };
const transport = new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } });
await client.connect(transport);
out({ capabilities: client.getServerCapabilities() });
await client.listTools();
const tasks = client.experimental.tasks;
const call = (topic, ambiguous) =>
  tasks.callToolStream({ name: NAME, arguments: { topic, ambiguous } }, CallToolResultSchema, { task: { ttl: 60000 } });

// One that asks, to its end.
for await (const message of call('python', true)) {
  if (message.type === 'taskCreated') out({ created: message.task.taskId });
  if (message.type === 'taskStatus') out({ status: message.task.status, of: message.task.taskId });
  if (message.type === 'result') out({ text: message.result.content[0].text, about: message.result._meta?.[RELATED]?.taskId ?? null });
  if (message.type === 'error') out({ error: message.error.message });
}
// One that is cancelled.
for await (const message of call('waste', false)) {
  if (message.type !== 'taskCreated') continue;
  const id = message.task.taskId;
  out({ created: id });
  out({ cancelled: (await tasks.cancelTask(id)).status });
  break;
}
out({ listed: (await tasks.listTasks()).tasks.map((task) => task.taskId) });
try {
  await tasks.getTask('no-such-task');
} catch (error) {
  out({ code: error.code, message: error.message });
}
out({ session: transport.sessionId });
await client.close();
