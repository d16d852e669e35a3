// An identity provider in the shape of Microsoft Entra, for tests: strict where Entra is, with switches for its failures.
//
//   node entra.mjs FOLDER
//
// FOLDER holds tls.crt and tls.key (for https on localhost) and client.crt (the gateway's certificate). Writes jwks.json
// there and prints `LISTENING https://localhost:PORT http://127.0.0.1:PORT`, the same twice. Users are named for what
// happens to them: `noconsent-…`, `mfa-…` (until the token has `acrs`), `denied-…`, `app-…` (an application). Beside the
// tenants there is Microsoft Graph, which knows `members` by `TENANT/OBJECT`. /control shows and sets everything.
import crypto from 'node:crypto';
import fs from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import path from 'node:path';

const folder = process.argv[2];
const read = (name) => fs.readFileSync(path.join(folder, name));
const CLIENT = '11111111-2222-3333-4444-555555555555';
const { publicKey, privateKey } = crypto.generateKeyPairSync('rsa', { modulusLength: 2048 });
const KID = 'entra-1';
fs.writeFileSync(path.join(folder, 'jwks.json'), JSON.stringify({ keys: [{ ...publicKey.export({ format: 'jwk' }), kid: KID, use: 'sig', alg: 'RS256' }] }));

const settings = { down: false, slow_ms: 0, lifetime: 3600, secret: 's3cret', federated: 'federated-1', graph: 'up', members: {} };
// Questions to Graph that were good, and requests that nobody should make.
const state = { exchanges: {}, forms: [], number: 0, questions: [], strays: [] };
const issued = new Set();
const isId = (text) => /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(text);
const seen = new Set();
const b64 = (value) => Buffer.from(typeof value === 'string' ? value : JSON.stringify(value)).toString('base64url');
const part = (text) => JSON.parse(Buffer.from(text, 'base64url').toString());
const now = () => Math.floor(Date.now() / 1000);
let base = '';

const issue = (user, extra = {}) => {
  const tenant = extra.tid ?? 'contoso';
  const app = user.startsWith('app-');
  const claims = {
    iss: `${base}/contoso/v2.0`, aud: CLIENT, sub: user, oid: user, tid: tenant, azp: 'agent', iat: now(), nbf: now() - 5, exp: now() + 3600,
    ...(app ? { idtyp: 'app', roles: ['mcp.read'], scope: 'mcp.read' } : { scp: 'mcp.read' }), ...extra,
  };
  const told = Object.fromEntries(Object.entries(claims).filter(([, value]) => value !== null));
  const signed = `${b64({ alg: 'RS256', kid: KID, typ: 'JWT' })}.${b64(told)}`;
  return `${signed}.${crypto.sign('sha256', Buffer.from(signed), privateKey).toString('base64url')}`;
};

class Refused extends Error {
  constructor(error, code, more = {}, status = 400) {
    super(error);
    // The description quotes the token on purpose: nobody may log it.
    this.body = { error, error_codes: [code], error_description: `AADSTS${code}: canary-description`, trace_id: 'trace-1', correlation_id: 'c-1', timestamp: 'now', ...more };
    this.status = status;
  }
}

const clientOf = (form, headers, url) => {
  const basic = headers.authorization?.startsWith('Basic ') ? Buffer.from(headers.authorization.slice(6), 'base64').toString().split(':').map(decodeURIComponent) : null;
  const id = basic ? basic[0] : form.client_id;
  if (id !== CLIENT) throw new Refused('unauthorized_client', 700016);
  if (!form.client_assertion) {
    if ((basic ? basic[1] : form.client_secret) !== settings.secret) throw new Refused('invalid_client', 7000215, {}, 401);
    return;
  }
  if (form.client_assertion_type !== 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer') throw new Refused('invalid_request', 900144);
  if (form.client_assertion === settings.federated) return;
  const bad = (why) => { throw new Refused('invalid_client', 700027, { suberror: why }, 401); };
  const [head, body, signature] = form.client_assertion.split('.');
  if (!signature) bad('not_a_jwt');
  const header = part(head);
  const claims = part(body);
  const certificate = new crypto.X509Certificate(read('client.crt'));
  const print = crypto.createHash('sha256').update(certificate.raw).digest('base64url');
  // msal for Python pads it, which RFC 7515 does not; Entra takes both.
  if (header['x5t#S256']?.replace(/=+$/, '') !== print) bad('thumbprint');
  const padding = { PS256: { padding: crypto.constants.RSA_PKCS1_PSS_PADDING, saltLength: 32 }, RS256: {} }[header.alg] ?? bad('alg');
  if (!crypto.verify('sha256', Buffer.from(`${head}.${body}`), { key: certificate.publicKey, ...padding }, Buffer.from(signature, 'base64url'))) bad('signature');
  if (claims.aud !== url) bad(`aud ${claims.aud} is not ${url}`);
  if (claims.iss !== CLIENT || claims.sub !== CLIENT) bad('iss');
  if (!(claims.exp > now() && claims.exp <= now() + 660)) bad('exp');
  if (!claims.jti || seen.has(claims.jti)) bad('jti');
  seen.add(claims.jti);
};

const userOf = (token, tenant) => {
  const [head, body, signature] = token.split('.');
  const good = signature && part(head).kid === KID && crypto.verify('sha256', Buffer.from(`${head}.${body}`), publicKey, Buffer.from(signature, 'base64url'));
  if (!good) throw new Refused('invalid_grant', 50013);
  const claims = part(body);
  if (claims.aud !== CLIENT && claims.aud !== `api://${CLIENT}`) throw new Refused('invalid_grant', 500131);
  if (claims.exp <= now()) throw new Refused('invalid_grant', 500133);
  if (isId(tenant) && claims.tid !== tenant) throw new Refused('invalid_grant', 50013);
  if (claims.idtyp === 'app') throw new Refused('invalid_request', 7000114);
  const name = claims.sub;
  if (name.startsWith('noconsent-')) throw new Refused('invalid_grant', 65001, { suberror: 'consent_required' });
  if (name.startsWith('denied-')) throw new Refused('invalid_grant', 50105);
  if (name.startsWith('mfa-') && !claims.acrs) {
    throw new Refused('interaction_required', 50076, { suberror: 'basic_action', claims: '{"access_token":{"acrs":{"essential":true,"value":"c1"}}}' });
  }
  return isId(tenant) ? claims.oid : name;
};

const token = (form, headers, url, tenant) => {
  clientOf(form, headers, url);
  let who;
  if (form.grant_type === 'urn:ietf:params:oauth:grant-type:jwt-bearer') {
    if (form.requested_token_use !== 'on_behalf_of') throw new Refused('invalid_request', 900144);
    if (!form.scope) throw new Refused('invalid_scope', 70011);
    who = userOf(form.assertion, tenant);
  } else if (form.grant_type === 'urn:ietf:params:oauth:grant-type:token-exchange') {
    if (form.subject_token_type !== 'urn:ietf:params:oauth:token-type:access_token') throw new Refused('invalid_request', 0);
    who = userOf(form.subject_token, tenant);
  } else if (form.grant_type === 'client_credentials') {
    who = 'the-gateway';
  } else {
    throw new Refused('unsupported_grant_type', 70003);
  }
  state.exchanges[who] = (state.exchanges[who] ?? 0) + 1;
  state.number += 1;
  const access_token = `t.${b64({ user: who, for: form.scope ?? form.audience, number: state.number, claims: form.claims ?? null, ...(isId(tenant) ? { tid: tenant } : {}) })}`;
  issued.add(access_token);
  return { token_type: 'Bearer', expires_in: settings.lifetime, ext_expires_in: settings.lifetime, access_token, issued_token_type: 'urn:ietf:params:oauth:token-type:access_token' };
};

const control = (form) => {
  if (form.tokens) return form.tokens.map((one) => (typeof one === 'string' ? issue(one) : issue(one.user, one.claims)));
  if (form.forget) Object.assign(state, { exchanges: {}, forms: [], questions: [], strays: [] });
  Object.assign(settings, form.set ?? {});
  return { ...state, settings };
};

const graphError = (status, code) => [status, { error: { code, message: 'canary-message', innerError: {} } }];

// What Graph does with POST …/getMemberObjects, as strictly: a token for Graph itself, of the right kind, one parameter.
const graph = async (request, body, url) => {
  if (settings.graph_slow_ms) await new Promise((done) => setTimeout(done, settings.graph_slow_ms));
  if (settings.graph === 'down') return graphError(503, 'ServiceUnavailable');
  const bearer = request.headers.authorization?.match(/^Bearer (t\.[\w-]+)$/)?.[1];
  const who = bearer && issued.has(bearer) ? part(bearer.slice(2)) : {};
  if (who.for !== `${url.origin}/.default` || !who.tid) return graphError(401, 'InvalidAuthenticationToken');
  const [, kind, id] = url.pathname.match(/^\/v1\.0\/(me|users|servicePrincipals)(?:\/([^/]+))?\/getMemberObjects$/) ?? [];
  if (request.method !== 'POST' || !kind || (kind === 'me') !== !id) return graphError(400, 'BadRequest');
  const itself = who.user === 'the-gateway';
  if (itself === (kind === 'me')) return graphError(403, 'Authorization_RequestDenied');
  const asked = JSON.parse(body);
  if (request.headers['content-type'] !== 'application/json' || Object.keys(asked).join() !== 'securityEnabledOnly' || typeof asked.securityEnabledOnly !== 'boolean') return graphError(400, 'Request_BadRequest');
  const object = `${who.tid}/${itself ? id : who.user}`;
  state.questions.push({ path: url.pathname, object, ...asked });
  if (settings.graph === 'too_many') return graphError(400, 'Directory_ResultSizeLimitExceeded');
  const value = settings.members[object];
  if (!value) return graphError(404, 'Request_ResourceNotFound');
  return [200, { '@odata.context': `${url.origin}/v1.0/$metadata#Collection(Edm.String)`, value }];
};

const answer = async (request, body, base) => {
  const url = new URL(request.url, base);
  if (url.pathname === '/control') return [200, control(JSON.parse(body || '{}'))];
  if (url.pathname.startsWith('/v1.0/')) return graph(request, body, url);
  const [, tenant, rest] = url.pathname.match(/^\/([^/]+)\/(.*)$/) ?? [];
  if (rest === 'v2.0/.well-known/openid-configuration') {
    const at = `${base}/${tenant}`;
    return [200, { issuer: `${at}/v2.0`, authorization_endpoint: `${at}/oauth2/v2.0/authorize`, token_endpoint: `${at}/oauth2/v2.0/token`, jwks_uri: `${at}/discovery/v2.0/keys`, response_types_supported: ['code'], subject_types_supported: ['pairwise'], id_token_signing_alg_values_supported: ['RS256'] }];
  }
  if (rest === 'discovery/v2.0/keys') return [200, JSON.parse(read('jwks.json'))];
  if (rest !== 'oauth2/v2.0/token') {
    state.strays.push(url.pathname);
    return [404, {}];
  }
  if (settings.slow_ms) await new Promise((done) => setTimeout(done, settings.slow_ms));
  if (settings.down) return [503, { error: 'temporarily_unavailable', error_codes: [90033] }];
  const form = Object.fromEntries(new URLSearchParams(body));
  state.forms.push({ tenant, ...form });
  try {
    return [200, token(form, request.headers, `${base}${url.pathname}`, tenant)];
  } catch (refused) {
    if (!(refused instanceof Refused)) throw refused;
    return [refused.status, refused.body];
  }
};

const serve = (base) => (request, response) => {
  let body = '';
  request.on('data', (chunk) => { body += chunk; });
  request.on('end', async () => {
    const [status, value] = await answer(request, body, base()).catch((error) => [500, { error: String(error) }]);
    response.writeHead(status, { 'content-type': 'application/json', ...(status === 503 ? { 'retry-after': '3' } : {}) });
    response.end(JSON.stringify(value));
  });
};
const listening = (server, host) => new Promise((done) => server.listen(0, host, () => done(server.address().port)));
let plain = '';
const open = listening(http.createServer(serve(() => plain)), '127.0.0.1');
const secure = listening(https.createServer({ cert: read('tls.crt'), key: read('tls.key') }, serve(() => base)), 'localhost');
plain = `http://127.0.0.1:${await open}`;
base = `https://localhost:${await secure}`;
console.log(`LISTENING ${base} ${plain}`);
// Ends with who started it.
process.stdin.on('end', () => process.exit(0)).resume();
