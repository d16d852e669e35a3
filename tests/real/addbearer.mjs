// A loopback proxy for tests: adds `Authorization: Bearer TOKEN` to requests that have none and passes the rest on.
// usage: node addbearer.mjs LISTEN_PORT TARGET_PORT TOKEN     (listen port 0 = any free; prints `LISTENING port`)
// Streams both ways, keeps the Host header, and hands an abort of either side to the other side at once.
import http from 'node:http';

const [listenPort, targetPort, token] = process.argv.slice(2);
if (!token) {
  console.error('usage: node addbearer.mjs LISTEN_PORT TARGET_PORT TOKEN');
  process.exit(2);
}

// Raw headers keep duplicates, order and spelling; only those about the single connection are left out.
const passed = (raw) => raw.flatMap((name, i) => (i % 2 || /^(connection|keep-alive)$/i.test(name) ? [] : [name, raw[i + 1]]));

const server = http.createServer((request, response) => {
  const headers = passed(request.rawHeaders);
  if (request.headers.authorization === undefined) headers.push('Authorization', `Bearer ${token}`);
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
    answer.pipe(response);
  });
  upstream.on('error', () => {
    if (response.headersSent) return response.destroy();
    response.writeHead(502, { 'content-type': 'text/plain' });
    response.end('upstream failed\n');
  });
  response.on('close', () => { if (!response.writableFinished) upstream.destroy(); });
  request.on('error', () => upstream.destroy());
  request.pipe(upstream);
});
server.requestTimeout = 0;
server.timeout = 0;
server.listen(Number(listenPort), '127.0.0.1', () => console.log(`LISTENING ${server.address().port}`));
