// Microsoft's own client for Node asks for a token on behalf of a user; prints what came as JSON.
//
//   node msal_obo.mjs AUTHORITY CLIENT SCOPE TOKEN secret SECRET
//   node msal_obo.mjs AUTHORITY CLIENT SCOPE TOKEN certificate KEY CERTIFICATE
import crypto from 'node:crypto';
import fs from 'node:fs';
import { createRequire } from 'node:module';

const { ConfidentialClientApplication } = createRequire(`${process.env.WARDGATE_NODE_MODULES}/`)('@azure/msal-node');
const [authority, clientId, scope, oboAssertion, kind, first, second] = process.argv.slice(2);
const auth = { clientId, authority, knownAuthorities: [new URL(authority).host] };
if (kind === 'secret') {
  auth.clientSecret = first;
} else {
  const certificate = new crypto.X509Certificate(fs.readFileSync(second));
  const thumbprintSha256 = crypto.createHash('sha256').update(certificate.raw).digest('hex');
  auth.clientCertificate = { thumbprintSha256, privateKey: fs.readFileSync(first, 'utf8') };
}
try {
  const result = await new ConfidentialClientApplication({ auth }).acquireTokenOnBehalfOf({ oboAssertion, scopes: [scope] });
  console.log(JSON.stringify({ access_token: result.accessToken }));
} catch (error) {
  console.log(JSON.stringify({ error: error.errorCode, suberror: error.subError, claims: error.claims, message: error.message }));
}
