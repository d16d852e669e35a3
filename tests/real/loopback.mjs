// Preload for servers that listen on all interfaces: `node --import loopback.mjs server.js` makes every TCP listener
// that names no host one on 127.0.0.1, and prints `LISTENING PORT` once it accepts connections.
import net from 'node:net';

const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (port, ...rest) {
  if (!/^\d+$/.test(String(port)) || typeof rest[0] === 'string') return listen.call(this, port, ...rest);
  this.once('listening', () => console.log(`LISTENING ${this.address().port}`));
  return listen.call(this, port, '127.0.0.1', ...rest);
};
