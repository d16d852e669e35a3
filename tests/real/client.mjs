// A test client on the official TypeScript SDKs (v1 and v2): lists tools, then calls what the arguments say.
// usage: node client.mjs URL TOKEN VERSION [--call NAME JSON]... [--cancel NAME JSON SECONDS]... [--list]
//   TOKEN `-` is none; VERSION is v1, v2-legacy, v2-auto or v2-modern. Finds the SDKs in $WARDGATE_NODE_MODULES.
// Prints one JSON line for the list and one for each action, in the format of client.py; exits 1 if it cannot connect.
import { createRequire } from 'node:module';
import path from 'node:path';

const [url, token, version, ...rest] = process.argv.slice(2);
const modules = process.env.WARDGATE_NODE_MODULES;
if (!modules || !['v1', 'v2-legacy', 'v2-auto', 'v2-modern'].includes(version)) {
  console.error('usage: WARDGATE_NODE_MODULES=DIR node client.mjs URL TOKEN v1|v2-legacy|v2-auto|v2-modern [ACTION...]');
  process.exit(2);
}
const require = createRequire(path.join(modules, 'client.cjs'));
const out = (line) => console.log(JSON.stringify(line));
const describe = (error) => {
  const found = { code: error?.code ?? null, message: String(error?.message ?? error) };
  if (error?.data !== undefined) found.data = error.data;
  if (error?.status !== undefined) found.status = error.status;
  return found;
};

function connectParts() {
  const options = { requestInit: token === '-' ? {} : { headers: { Authorization: `Bearer ${token}` } } };
  const info = { name: 'wardgate-test-client', version: '1.0.0' };
  if (version === 'v1') {
    const { Client } = require('@modelcontextprotocol/sdk/client/index.js');
    const { StreamableHTTPClientTransport } = require('@modelcontextprotocol/sdk/client/streamableHttp.js');
    return [new Client(info, { capabilities: {} }), new StreamableHTTPClientTransport(new URL(url), options)];
  }
  const { Client, StreamableHTTPClientTransport } = require('@modelcontextprotocol/client');
  const negotiation = { 'v2-legacy': undefined, 'v2-auto': { mode: 'auto' }, 'v2-modern': { mode: { pin: '2026-07-28' } } };
  const settings = { capabilities: {} };
  if (negotiation[version]) settings.versionNegotiation = negotiation[version];
  return [new Client(info, settings), new StreamableHTTPClientTransport(new URL(url), options)];
}

async function listTools(client) {
  // The v1 client returns one page and the v2 client may walk all of them itself; both work with this loop.
  const tools = [];
  let cursor;
  let pages = 0;
  do {
    const page = await client.listTools(cursor === undefined ? undefined : { cursor });
    tools.push(...page.tools);
    cursor = page.nextCursor;
    pages += 1;
  } while (cursor !== undefined && pages < 1000);
  return { tools, pages };
}

function call(client, name, args, options) {
  const params = { name, arguments: args };
  // v1 takes (params, resultSchema, options), v2 takes (params, options).
  return version === 'v1' ? client.callTool(params, undefined, options) : client.callTool(params, options);
}

try {
  const [client, transport] = connectParts();
  await client.connect(transport);
  const protocol = client.getNegotiatedProtocolVersion?.() ?? transport.protocolVersion ?? null;
  const { tools, pages } = await listTools(client);
  out({
    protocol,
    server: client.getServerVersion()?.name ?? null,
    capabilities: client.getServerCapabilities() ?? null,
    tools: tools.map((tool) => tool.name),
    pages,
    annotations: Object.fromEntries(tools.map((tool) => [tool.name, tool.annotations ?? null])),
    bytes: JSON.stringify(tools).length,
  });
  while (rest.length > 0) {
    const action = rest.shift();
    if (action === '--list') {
      const again = await listTools(client);
      out({ tools: again.tools.map((tool) => tool.name), pages: again.pages });
      continue;
    }
    if (action !== '--call' && action !== '--cancel') throw new Error(`bad argument ${action}`);
    const tool = rest.shift();
    const args = JSON.parse(rest.shift());
    const line = { tool };
    const started = performance.now();
    const abort = new AbortController();
    const seconds = action === '--cancel' ? Number(rest.shift()) : undefined;
    const timer = seconds === undefined ? undefined : setTimeout(() => abort.abort('test cancels'), seconds * 1000);
    try {
      const result = await call(client, tool, args, { signal: abort.signal });
      line.isError = result.isError === true;
      line.text = result.content.map((block) => block.text ?? `[${block.type}]`).join('\n');
      if (result.structuredContent !== undefined) line.structured = result.structuredContent;
    } catch (error) {
      if (abort.signal.aborted) line.cancelled = true;
      else line.error = describe(error);
    }
    clearTimeout(timer);
    line.ms = Math.round(performance.now() - started);
    // The cancellation is on its way only after the call has failed here: let it arrive before the next action.
    if (seconds !== undefined) await new Promise((done) => setTimeout(done, 300));
    out(line);
  }
  await client.close();
} catch (error) {
  out({ error: describe(error) });
  process.exit(1);
}
