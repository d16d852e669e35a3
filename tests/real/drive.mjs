// Drives the official TypeScript SDK clients (v1 and v2) through a script of steps against many servers.
// usage: WARDGATE_NODE_MODULES=DIR node drive.mjs < CELLS
//   CELLS and what is printed are those of drive.py; `mode` is v1, v2-legacy, v2-auto or v2-modern.
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import path from 'node:path';

const require = createRequire(path.join(process.env.WARDGATE_NODE_MODULES, 'drive.cjs'));
const v1 = {
  ...require('@modelcontextprotocol/sdk/client/index.js'),
  ...require('@modelcontextprotocol/sdk/client/streamableHttp.js'),
  types: require('@modelcontextprotocol/sdk/types.js'),
};
const v2 = require('@modelcontextprotocol/client');

const STEP_MS = 30_000;
const UPDATE_MS = 12_000;
const POLL_MS = 100;
const INFO = { name: 'wardgate-test-client', version: '1.0.0' };
const MODES = { 'v2-legacy': undefined, 'v2-auto': { mode: 'auto' }, 'v2-modern': { mode: { pin: '2026-07-28' } } };

class Wrong extends Error {}
// An answer of the server, as against a failure of the transport or of this script.
// (With a 404 the SDK gives the JSON-RPC error as text only.)
const isAnswer = (error) =>
  !(error instanceof Wrong) && (Number.isInteger(error?.code) || /"error":\{"code":-?\d+/.test(error?.message));
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const said = (error) => (error instanceof Wrong ? error.message : `${error?.code ?? error?.name}: ${error?.message}`);
const textOf = (result) => (result.content ?? []).map((block) => block.text ?? `[${block.type}]`).join('\n');
const has = (text, wanted) => {
  if (!text.includes(wanted)) throw new Wrong(`${JSON.stringify(wanted)} is not in ${JSON.stringify(text.slice(0, 300))}`);
};

/** One client and what it has seen besides answers. */
class Cell {
  constructor(spec) {
    this.spec = spec;
    this.asked = 0;
    this.updates = [];
  }

  open() {
    const { url, token, mode } = this.spec;
    const options = { requestInit: token === '-' ? {} : { headers: { Authorization: `Bearer ${token}` } } };
    const settings = { capabilities: { elicitation: {} } };
    const answer = ({ params }) => this.answer(params);
    const update = ({ params }) => void this.updates.push(params.uri);
    if (mode === 'v1') {
      this.client = new v1.Client(INFO, settings);
      this.client.setRequestHandler(v1.types.ElicitRequestSchema, answer);
      this.client.setNotificationHandler(v1.types.ResourceUpdatedNotificationSchema, update);
      this.transport = new v1.StreamableHTTPClientTransport(new URL(url), options);
      return;
    }
    if (MODES[mode]) settings.versionNegotiation = MODES[mode];
    this.client = new v2.Client(INFO, settings);
    this.client.setRequestHandler('elicitation/create', answer);
    this.client.setNotificationHandler('notifications/resources/updated', update);
    this.transport = new v2.StreamableHTTPClientTransport(new URL(url), options);
  }

  /** Fills a form in: defaults where there are some, else the first choice, else something of that type. */
  answer(params) {
    this.asked += 1;
    const values = { string: 'Alice', integer: 7, number: 7.5, boolean: true };
    const fields = params.requestedSchema?.properties ?? {};
    const names = params.requestedSchema?.required ?? Object.keys(fields);
    const value = (field) => field.default ?? field.enum?.[0] ?? values[field.type] ?? 'Alice';
    return { action: 'accept', content: Object.fromEntries(names.map((name) => [name, value(fields[name])])) };
  }

  async call(step, options) {
    const params = { name: step.tool, arguments: step.args };
    // v1 takes (params, resultSchema, options), v2 takes (params, options).
    return this.spec.mode === 'v1' ? this.client.callTool(params, undefined, options) : this.client.callTool(params, options);
  }

  async called(step) {
    const result = await this.call(step);
    if (result.isError) throw new Wrong(`the tool failed: ${textOf(result).slice(0, 300)}`);
    has(textOf(result), step.text);
  }

  async list(step) {
    const names = [];
    let cursor;
    for (let pages = 0; pages < 100; pages += 1) {
      const page = await this.client.listTools(cursor === undefined ? undefined : { cursor });
      names.push(...page.tools.map((tool) => tool.name));
      cursor = page.nextCursor;
      if (cursor === undefined) break;
    }
    const seen = names.filter((name) => name.startsWith(step.prefix));
    const missing = step.must.filter((name) => !seen.includes(name)).sort();
    const extra = seen.filter((name) => !step.must.includes(name) && !step.may.includes(name)).sort();
    if (missing.length > 0 || extra.length > 0 || new Set(names).size !== names.length) {
      throw new Wrong(`missing ${JSON.stringify(missing)}, not expected ${JSON.stringify(extra)}, ${names.length} listed`);
    }
  }

  async progress(step) {
    const seen = [];
    const result = await this.call(step, { onprogress: ({ progress }) => seen.push(progress) });
    has(textOf(result), step.text);
    if (seen.length < step.least || seen.some((value, i) => i > 0 && value <= seen[i - 1])) {
      throw new Wrong(`progress ${JSON.stringify(seen)}, wanted ${step.least} that rise`);
    }
  }

  async elicit(step) {
    const before = this.asked;
    await this.called(step);
    if (this.asked === before) throw new Wrong('the client was never asked');
  }

  async read(step) {
    const { contents } = await this.client.readResource({ uri: step.uri });
    has(contents.map((one) => one.text ?? '[blob]').join('\n'), step.text ?? '');
    if (!step.listed) return;
    const uris = (await this.client.listResources()).resources.map((one) => one.uri);
    if (!uris.includes(step.uri)) throw new Wrong(`not listed among ${JSON.stringify(uris.slice(0, 20))}`);
  }

  async prompt(step) {
    const { messages } = await this.client.getPrompt({ name: step.name, arguments: step.args });
    has(messages[0].content.text, step.text ?? '');
    if (!step.listed) return;
    const names = (await this.client.listPrompts()).prompts.map((one) => one.name);
    if (!names.includes(step.name)) throw new Wrong(`not listed among ${JSON.stringify(names.slice(0, 20))}`);
  }

  async subscribe(step) {
    const { uri } = step;
    if (this.protocol() < '2026') {
      await this.client.subscribeResource({ uri });
      if (step.refused) return;
      await this.updated(step);
      await this.client.unsubscribeResource({ uri });
      return;
    }
    const subscription = await this.client.listen({ resourceSubscriptions: [uri] });
    try {
      const honored = (subscription.honoredFilter.resourceSubscriptions ?? []).includes(uri);
      if (!honored) throw Object.assign(new Error('left out of what the server acknowledges'), { code: -32602 });
      if (!step.refused) await this.updated(step);
    } finally {
      await subscription.close();
    }
  }

  async updated(step) {
    const deadline = performance.now() + UPDATE_MS;
    let again = 0;
    while (!this.updates.includes(step.uri)) {
      const now = performance.now();
      if (now > deadline) throw new Wrong(`no update of ${step.uri} within ${UPDATE_MS} ms, but ${JSON.stringify(this.updates)}`);
      if (now >= again) {
        again = step.again ? now + 1000 : deadline + 1;
        await this.call(step.trigger);
      }
      await sleep(POLL_MS);
    }
  }

  async cancel(step) {
    const abort = new AbortController();
    const timer = setTimeout(() => abort.abort('test cancels'), step.after * 1000);
    try {
      await this.call(step, { signal: abort.signal });
      throw new Wrong('the call ended before it was cancelled');
    } catch (error) {
      if (!abort.signal.aborted || error instanceof Wrong) throw error;
    } finally {
      clearTimeout(timer);
    }
    if (step.count) await this.counted(step.count);
    await this.called(step.then);
  }

  async counted(count) {
    const deadline = performance.now() + UPDATE_MS;
    for (;;) {
      const text = textOf(await this.call(count)).trim();
      if (text === count.text) return;
      if (performance.now() > deadline) throw new Wrong(`the server never heard of it: it says ${JSON.stringify(text)}`);
      await sleep(POLL_MS);
    }
  }

  async step(step) {
    if (step.lacks && this.client.getServerCapabilities()?.[step.lacks] !== undefined) {
      throw new Wrong(`it announces ${step.lacks}`);
    }
    const act = () => (step.step === 'call' ? this.called(step) : this[step.step](step));
    if (!step.refused) return act();
    try {
      await act();
    } catch (error) {
      if (isAnswer(error) || /does not support/.test(error?.message)) return;
      throw error;
    }
    throw new Wrong('it was answered, not refused');
  }

  protocol() {
    return this.client.getNegotiatedProtocolVersion?.() ?? this.transport.protocolVersion;
  }

  out(step, error) {
    const detail = error === undefined ? '' : said(error);
    console.log(JSON.stringify({ cell: this.spec.cell, step, ok: error === undefined, detail }));
  }

  async run() {
    try {
      this.open();
      await within(this.client.connect(this.transport));
      const wanted = ['v1', 'v2-legacy'].includes(this.spec.mode);
      if (this.protocol() < '2026' !== wanted) throw new Wrong(`version ${this.protocol()} was negotiated`);
      this.out('connect');
    } catch (error) {
      this.out('connect', error);
      return;
    }
    for (const step of this.spec.plan) {
      try {
        await within(this.step(step));
        this.out(step.step);
      } catch (error) {
        this.out(step.step, error);
      }
    }
    try {
      if (this.transport.sessionId) await within(this.transport.terminateSession());
      await this.client.close();
    } catch (error) {
      this.out('close', error);
    }
  }
}

async function within(promise) {
  let timer;
  const late = new Promise((_, fail) => {
    timer = setTimeout(() => fail(new Wrong(`nothing within ${STEP_MS} ms`)), STEP_MS);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

const { cells, at_once: atOnce } = JSON.parse(readFileSync(0, 'utf8'));
const left = cells.map((spec) => new Cell(spec));
const worker = async () => {
  for (let cell = left.shift(); cell !== undefined; cell = left.shift()) await cell.run();
};
await Promise.all(Array.from({ length: atOnce }, worker));
// A client that is not done with a stream must not keep the process.
process.exit(0);
