// The WebSocket that Node.js has built in (undici).
import { serve } from './serve.js';
import { Standard } from './standard.js';

await serve(new Standard(WebSocket), `Node.js ${process.versions.node}`, ['ping', 'send_fragments', 'no compression']);
