// A loopback proxy for tests: adds `Authorization: Bearer TOKEN` to requests that have none and passes the rest on.
// usage: node addbearer.mjs LISTEN_PORT TARGET_PORT TOKEN [SCHEME]     (listen port 0 = any free; prints `LISTENING port`)
// With SCHEME, `test://…` of the client is `SCHEME+test://…` for the server, in bodies and in Mcp-Name, and back: a client
// of a federated route knows resources by the URIs that it lists, the conformance suite by those of its fixture.
// Streams both ways, keeps the Host header, and hands an abort of either side to the other side at once.
import http from 'node:http';
import { Transform } from 'node:stream';

const [listenPort, targetPort, token, scheme] = process.argv.slice(2);
if (!token) {
  console.error('usage: node addbearer.mjs LISTEN_PORT TARGET_PORT TOKEN [SCHEME]');
  process.exit(2);
}

// Raw headers keep duplicates, order and spelling; only those about the single connection are left out.
const passed = (raw) => raw.flatMap((name, i) => (i % 2 || (scheme ? /^(connection|keep-alive|content-length)$/i : /^(connection|keep-alive)$/i).test(name) ? [] : [name, raw[i + 1]]));

const plain = '"test://';
const wrapped = `"${scheme}+test://`;

/** Replaces in a stream, also where a chunk ends within what is to be replaced. */
function replacing(from, to) {
  let kept = '';
  return new Transform({
    decodeStrings: true,
    transform(chunk, _, done) {
      const text = (kept + chunk.toString('latin1')).replaceAll(from, to);
      let end = Math.min(from.length - 1, text.length);
      while (end > 0 && !from.startsWith(text.slice(-end))) end -= 1;
      kept = text.slice(text.length - end);
      done(null, Buffer.from(text.slice(0, text.length - end), 'latin1'));
    },
    flush(done) {
      done(null, Buffer.from(kept, 'latin1'));
    },
  });
}

const server = http.createServer((request, response) => {
  const headers = passed(request.rawHeaders);
  if (request.headers.authorization === undefined) headers.push('Authorization', `Bearer ${token}`);
  for (let i = 0; scheme && i < headers.length; i += 2) {
    if (/^mcp-name$/i.test(headers[i])) headers[i + 1] = headers[i + 1].replace(/^test:\/\//, `${scheme}+test://`);
  }
  // A connection for each request: no reuse of one that the server is just closing.
  const upstream = http.request({
    host: '127.0.0.1', port: targetPort, path: request.url, method: request.method, headers, agent: false, setHost: false,
  });
  upstream.setNoDelay(true);
  upstream.on('response', (answer) => {
    response.writeHead(answer.statusCode, answer.statusMessage, passed(answer.rawHeaders));
    response.flushHeaders();
    answer.on('error', () => response.destroy());
    answer.on('aborted', () => response.destroy());
    if (scheme) answer.pipe(replacing(wrapped, plain)).pipe(response);
    else answer.pipe(response);
  });
  upstream.on('error', () => {
    if (response.headersSent) return response.destroy();
    response.writeHead(502, { 'content-type': 'text/plain' });
    response.end('upstream failed\n');
  });
  response.on('close', () => { if (!response.writableFinished) upstream.destroy(); });
  request.on('error', () => upstream.destroy());
  if (scheme) request.pipe(replacing(plain, wrapped)).pipe(upstream);
  else request.pipe(upstream);
});
server.requestTimeout = 0;
server.timeout = 0;
server.listen(Number(listenPort), '127.0.0.1', () => console.log(`LISTENING ${server.address().port}`));
