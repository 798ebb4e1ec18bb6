// The WebSocket that Node.js has built in (undici).
import { serve } from './serve.js';
import { Standard } from './standard.js';

// The interface is that of browsers: neither ping() nor fragments, and always with an offer of compression.
await serve(new Standard(WebSocket), `Node.js ${process.versions.node}`, ['ping', 'send_fragments', 'no compression']);
