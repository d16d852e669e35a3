// A real OpenID provider (npm oidc-provider) that speaks RFC 8693, and whose keys, address and life a test decides on.
//
//   node exchange.mjs FOLDER --keys 2,1 [--port PORT]      prints its issuer as one JSON line.
//
// Keys are made when they are first named and stay in FOLDER; the first one signs, all are published. Clients, of the same
// secret `s3cret`: `gateway` may exchange tokens that are for the gateway, and `client` gets tokens of any `account` by the
// grant `urn:test:account`. POST /sign makes a token of any claims with any of the keys. Finds its packages in
// $WARDGATE_NODE_MODULES.
import crypto from 'node:crypto';
import fs from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const args = process.argv.slice(2);
const option = (name) => (args.includes(name) ? args[args.indexOf(name) + 1] : undefined);
const folder = args[0];
const AUDIENCE = 'http://gateway.test';
const EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';
const ACCESS_TOKEN = 'urn:ietf:params:oauth:token-type:access_token';

console.warn = console.info = () => {};
const entry = path.join(process.env.WARDGATE_NODE_MODULES, 'oidc-provider/lib/index.js');
const { default: Provider, errors } = await import(pathToFileURL(entry));

const keyOf = (number) => {
  const file = path.join(folder, `key-${number}.pem`);
  if (!fs.existsSync(file)) {
    const { privateKey } = crypto.generateKeyPairSync('rsa', { modulusLength: 2048 });
    fs.writeFileSync(file, privateKey.export({ type: 'pkcs8', format: 'pem' }));
  }
  return crypto.createPrivateKey(fs.readFileSync(file));
};
const jwk = (number) => ({ ...keyOf(number).export({ format: 'jwk' }), kid: `key-${number}`, use: 'sig', alg: 'RS256' });
const keys = option('--keys').split(',').map(jwk);

const b64 = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
const sign = ({ key, claims }) => {
  const signed = `${b64({ alg: 'RS256', kid: `key-${key}`, typ: 'at+jwt' })}.${b64({ iss: issuer, ...claims })}`;
  return `${signed}.${crypto.sign('sha256', Buffer.from(signed), keyOf(key)).toString('base64url')}`;
};

const server = http.createServer();
await new Promise((listening) => server.listen(Number(option('--port') ?? 0), '127.0.0.1', listening));
const issuer = `http://127.0.0.1:${server.address().port}`;

const forAudience = { accessTokenFormat: 'jwt', jwt: { sign: { alg: 'RS256' } } };
const client = (client_id, grant) => ({ client_id, client_secret: 's3cret', grant_types: [grant], redirect_uris: [], response_types: [] });
const provider = new Provider(issuer, {
  clients: [client('gateway', EXCHANGE), { ...client('client', 'urn:test:account'), token_endpoint_auth_method: 'client_secret_post' }],
  jwks: { keys },
  scopes: ['mcp.read', 'mcp.write', 'notes.read'],
  ttl: { AccessToken: 3600 },
  extraTokenClaims: async (_ctx, token) => token.extra,
  findAccount: async (_ctx, id) => ({ accountId: id, claims: async () => ({ sub: id }) }),
  features: { devInteractions: { enabled: false } },
});

const issue = async (ctx, account, audience, scope, extra) => {
  const token = new provider.AccessToken({ accountId: account, client: ctx.oidc.client, scope, extra });
  token.resourceServer = new provider.ResourceServer(audience, { ...forAudience, audience, scope });
  ctx.body = { access_token: await token.save(), token_type: 'Bearer', expires_in: token.expiration, scope };
};

provider.registerGrantType('urn:test:account', async (ctx) => {
  const { account, audience, scope } = ctx.oidc.params;
  await issue(ctx, account, audience, scope);
}, ['account', 'audience', 'scope']);

// The subject token must be this provider's, good now, and for the client that wants to exchange it.
const subjectOf = (token) => {
  const [head, body, signature] = token.split('.');
  const read = (part) => JSON.parse(Buffer.from(part, 'base64url'));
  const key = keys.find(({ kid }) => kid === read(head).kid);
  const good = key && crypto.verify('sha256', Buffer.from(`${head}.${body}`), crypto.createPublicKey({ key, format: 'jwk' }), Buffer.from(signature, 'base64url'));
  const claims = good ? read(body) : {};
  if (claims.iss !== issuer || claims.aud !== AUDIENCE || !(claims.exp > Date.now() / 1000)) throw new errors.InvalidRequest('subject_token is not acceptable');
  return claims;
};
provider.registerGrantType(EXCHANGE, async (ctx) => {
  const { subject_token, subject_token_type, requested_token_type, audience, scope, actor_token } = ctx.oidc.params;
  if (subject_token_type !== ACCESS_TOKEN || (requested_token_type && requested_token_type !== ACCESS_TOKEN)) throw new errors.InvalidRequest('only access tokens');
  if (actor_token) throw new errors.InvalidRequest('no actor is known here');
  if (audience !== 'urn:notes') throw new errors.InvalidTarget('nobody of that name');
  const claims = subjectOf(subject_token);
  if (claims.sub.startsWith('denied-')) throw new errors.AccessDenied('not for this account');
  await issue(ctx, claims.sub, audience, scope, { act: { sub: ctx.oidc.client.clientId } });
  ctx.body.issued_token_type = ACCESS_TOKEN;
}, ['audience', 'resource', 'scope', 'requested_token_type', 'subject_token', 'subject_token_type', 'actor_token', 'actor_token_type']);

const serve = provider.callback();
server.on('request', (request, response) => {
  if (request.url !== '/sign') return serve(request, response);
  let body = '';
  request.on('data', (chunk) => { body += chunk; });
  request.on('end', () => response.end(JSON.stringify(JSON.parse(body).map(sign))));
});
console.log(JSON.stringify({ issuer }));
// The test that started us holds our standard input; when it is gone, so are we.
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
