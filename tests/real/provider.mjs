// A real OpenID provider (npm oidc-provider) on loopback: code flow with PKCE, device flow, JWT access tokens.
// usage: node provider.mjs [--bare] [--iss wrong|missing] [--life SECONDS]   prints its issuer as one JSON line.
//   --bare  as Entra ID is: no registration, no word of PKCE, no `iss` in redirects, no RFC 8414 document;
//           one client is registered: `public-client`, public, redirects to loopback `/callback`.
//   --iss   what the redirect says of its issuer, against the metadata (RFC 9207).
//   --life  how long access tokens live.
// Whoever comes to log in is `ada`, at once; consent is given at once. Finds the package in $WARDGATE_NODE_MODULES.
import http from 'node:http';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const args = process.argv.slice(2);
const option = (name) => (args.includes(name) ? args[args.indexOf(name) + 1] : undefined);
const bare = args.includes('--bare');
const iss = option('--iss');
const life = Number(option('--life') ?? 3600);

console.warn = console.info = () => {};
const entry = path.join(process.env.WARDGATE_NODE_MODULES, 'oidc-provider/lib/index.js');
const { default: Provider } = await import(pathToFileURL(entry));

const server = http.createServer();
await new Promise((listening) => server.listen(0, '127.0.0.1', listening));
const issuer = `http://127.0.0.1:${server.address().port}`;

const provider = new Provider(issuer, {
  clients: [
    {
      client_id: 'public-client',
      application_type: 'native',
      token_endpoint_auth_method: 'none',
      redirect_uris: ['http://127.0.0.1/callback', 'http://localhost/callback'],
      grant_types: ['authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:device_code'],
      response_types: ['code'],
    },
  ],
  cookies: { keys: ['only', 'for', 'tests'] },
  scopes: ['openid', 'offline_access', 'mcp.read', 'mcp.write'],
  pkce: { required: () => true },
  issueRefreshToken: async (_ctx, client) => client.grantTypeAllowed('refresh_token'),
  findAccount: async (_ctx, id) => ({ accountId: id, claims: async () => ({ sub: id }) }),
  interactions: { url: (_ctx, interaction) => `/interaction/${interaction.uid}` },
  ttl: { AccessToken: life, Grant: 3600, Interaction: 600, Session: 3600, DeviceCode: 600, RefreshToken: 3600, IdToken: 600 },
  features: {
    devInteractions: { enabled: false },
    deviceFlow: { enabled: true },
    registration: { enabled: !bare },
    revocation: { enabled: true },
    resourceIndicators: {
      enabled: true,
      useGrantedResource: () => true,
      defaultResource: (_ctx, _client, oneOf) => oneOf ?? [],
      getResourceServerInfo: (_ctx, resource) => ({
        scope: 'mcp.read mcp.write',
        audience: resource,
        accessTokenFormat: 'jwt',
        accessTokenTTL: life,
        jwt: { sign: { alg: 'RS256' } },
      }),
    },
  },
});

const said = (location, value) => {
  const url = URL.parse(location);
  if (!url || !url.searchParams.has('iss')) return location;
  if (value) url.searchParams.set('iss', value);
  else url.searchParams.delete('iss');
  return url.href;
};
provider.use(async (ctx, next) => {
  await next();
  const location = ctx.response.get('location');
  if (location && (bare || iss)) ctx.set('location', said(location, iss === 'wrong' && 'https://evil.example'));
  if (bare && ctx.path.startsWith('/.well-known/') && ctx.body && typeof ctx.body === 'object') {
    if (ctx.path !== '/.well-known/openid-configuration') {
      ctx.status = 404;
      return;
    }
    delete ctx.body.code_challenge_methods_supported;
    delete ctx.body.authorization_response_iss_parameter_supported;
  }
});

const serve = provider.callback();
server.on('request', async (request, response) => {
  if (!request.url.startsWith('/interaction/')) return serve(request, response);
  try {
    const { prompt, params, session, grantId } = await provider.interactionDetails(request, response);
    if (prompt.name === 'login') {
      return await provider.interactionFinished(request, response, { login: { accountId: 'ada' } });
    }
    const known = grantId && (await provider.Grant.find(grantId));
    const grant = known || new provider.Grant({ accountId: session.accountId, clientId: params.client_id });
    const { missingOIDCScope, missingOIDCClaims, missingResourceScopes } = prompt.details;
    if (missingOIDCScope) grant.addOIDCScope(missingOIDCScope.join(' '));
    if (missingOIDCClaims) grant.addOIDCClaims(missingOIDCClaims);
    for (const [resource, scopes] of Object.entries(missingResourceScopes ?? {})) {
      grant.addResourceScope(resource, scopes.join(' '));
    }
    const consent = known ? {} : { grantId: await grant.save() };
    if (known) await grant.save();
    return await provider.interactionFinished(request, response, { consent }, { mergeWithLastSubmission: true });
  } catch (error) {
    response.statusCode = 500;
    response.end(String(error));
  }
});
console.log(JSON.stringify({ issuer }));
// The test that started us holds our standard input; when it is gone, so are we.
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
