// ws, from npm.
import { createRequire } from 'node:module';
import { WebSocket } from 'ws';
import { serve } from './serve.js';
import { Standard } from './standard.js';

class Ws extends Standard {
  make(url, subprotocols, compression) {
    return new WebSocket(url, subprotocols, compression === false ? { perMessageDeflate: false } : {});
  }

  send_fragments({ fragments }) {
    fragments.forEach((fragment, index) => this.socket.send(this.data(fragment), { fin: index === fragments.length - 1 }));
  }

  ping({ payload }) {
    const pong = new Promise(resolve => this.socket.once('pong', data => resolve({ pong: String(data) })));
    this.socket.ping(payload);
    return pong;
  }
}

const { version } = createRequire(import.meta.url)('ws/package.json');
await serve(new Ws(WebSocket), `ws ${version}`);
