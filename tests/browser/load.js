// Traffic without a browser: members of raw rooms on bare sockets, and publishes over HTTP.
import { once } from 'node:events';
import { connect } from 'node:net';

/**
 * A member of a raw room, once it is one. It reads what it is sent and throws it away; with
 * `reads: false` it never takes anything.
 */
export async function join(port, room, { reads = true } = {}) {
  const socket = connect(port, '127.0.0.1');
  socket.on('error', () => { /* it is told by its end */ });
  await once(socket, 'connect');
  socket.write(`GET /raw/${encodeURIComponent(room)} HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\nUpgrade: websocket\r\n`
    + 'Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n');
  const [head] = await once(socket, 'data');
  if (!String(head).startsWith('HTTP/1.1 101 ')) throw new Error(`not a member of ${room}: ${head}`);
  if (reads) socket.resume(); else socket.pause();
  return {
    /** Sends a short text, masked with a key of zeros. */
    say(text) {
      const payload = Buffer.from(text);
      socket.write(Buffer.concat([Buffer.from([0x81, 0x80 | payload.length, 0, 0, 0, 0]), payload]));
    },
    /** Goes without a word. */
    leave: () => socket.destroy(),
  };
}

/** Publishes these texts to a raw room, all at once. */
export async function publish(server, room_id, texts) {
  const answer = await fetch(`${server.admin}/v1/publish/batch`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', ...server.headers },
    body: JSON.stringify({ items: texts.map(text => ({ room_id, text })) }),
  });
  if (!answer.ok) throw new Error(`publishing was answered ${answer.status}: ${await answer.text()}`);
}
