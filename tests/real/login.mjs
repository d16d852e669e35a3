// The official TypeScript SDKs log in by themselves: only URLs are given. Prints what they came with, one JSON line per URL.
// usage: node login.mjs v1|v2 URL...     the same person and token store for all URLs, one after the other.
import { createRequire } from 'node:module';
import path from 'node:path';
import { walk } from './browser.mjs';

const [version, ...urls] = process.argv.slice(2);
const require = createRequire(path.join(process.env.WARDGATE_NODE_MODULES, 'client.cjs'));
const parts =
  version === 'v1'
    ? {
        ...require('@modelcontextprotocol/sdk/client/index.js'),
        ...require('@modelcontextprotocol/sdk/client/streamableHttp.js'),
      }
    : require('@modelcontextprotocol/client');
const { Client, StreamableHTTPClientTransport } = parts;

const seen = { logins: 0, scopes: [] };
const kept = {};
let answer;
const person = {
  get redirectUrl() {
    return 'http://127.0.0.1:33418/callback';
  },
  get clientMetadata() {
    return {
      client_name: 'wardgate-test-client',
      redirect_uris: [this.redirectUrl],
      grant_types: ['authorization_code', 'refresh_token'],
      response_types: ['code'],
      token_endpoint_auth_method: 'none',
      application_type: 'native',
    };
  },
  state: () => 'state-1',
  clientInformation: () => kept.client,
  saveClientInformation: (client) => void (kept.client = client),
  tokens: () => kept.tokens,
  saveTokens: (tokens) => void (kept.tokens = tokens),
  saveCodeVerifier: (verifier) => void (kept.verifier = verifier),
  codeVerifier: () => kept.verifier,
  async redirectToAuthorization(url) {
    seen.logins += 1;
    seen.scopes.push(url.searchParams.get('scope'));
    answer = new URL(await walk(url, { stop: true })).searchParams;
  },
};

async function use(url) {
  for (let round = 0; ; round += 1) {
    const transport = new StreamableHTTPClientTransport(new URL(url), { authProvider: person });
    const client = new Client({ name: 'wardgate-test-client', version: '1' }, { capabilities: {} });
    try {
      await client.connect(transport);
      const { tools } = await client.listTools();
      const result = await client.callTool({ name: 'list_notes', arguments: {} });
      await client.close();
      return { tools: tools.map((tool) => tool.name).sort(), text: result.content[0].text };
    } catch (error) {
      if (!answer || round > 3) throw error;
      const params = answer;
      answer = undefined;
      if (params.get('state') !== 'state-1') throw new Error('a foreign state');
      await (version === 'v1' ? transport.finishAuth(params.get('code')) : transport.finishAuth(params));
    }
  }
}

try {
  for (const url of urls) {
    const used = await use(url);
    console.log(JSON.stringify({ ...used, ...seen, client_id: kept.client.client_id, scope: kept.tokens.scope ?? null }));
  }
} catch (error) {
  console.log(JSON.stringify({ error: String(error?.message ?? error), name: error?.name, ...seen }));
  process.exit(1);
}
