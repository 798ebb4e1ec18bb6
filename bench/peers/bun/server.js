// A broadcast server on Bun's built-in publish (uWebSockets inside), as its documentation has it.
//
// The path is the room. Every message goes verbatim, same opcode, to all members of the room, the
// sender included. At /ws a connection is in the rooms it asks for, in JSON: {type: "join", room_id}
// is answered, {type: "broadcast", room_id, ..} goes verbatim to all members of that room. Bun sets
// TCP_NODELAY and compresses nothing unless told to.
//
// usage: bun server.js HOST PORT

const [hostname, port] = process.argv.slice(2);

const server = Bun.serve({
  hostname,
  port: Number(port),
  fetch(request, server) {
    const { pathname } = new URL(request.url);
    const data = { room: pathname === "/ws" ? undefined : pathname };
    if (server.upgrade(request, { data })) return undefined;
    return new Response("This is a WebSocket endpoint.\n", { status: 426 });
  },
  websocket: {
    // No timer that another server of the comparison does not have.
    idleTimeout: 0,
    sendPings: false,
    perMessageDeflate: false,
    open(ws) {
      if (ws.data.room) ws.subscribe(ws.data.room);
    },
    message(ws, message) {
      if (ws.data.room) {
        server.publish(ws.data.room, message);
        return;
      }
      const { type, room_id } = JSON.parse(message);
      if (type === "broadcast") {
        server.publish(room_id, message);
      } else if (type === "join") {
        ws.subscribe(room_id);
        ws.send(JSON.stringify({ type: "joined", room_id }));
      }
    },
  },
});

for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => process.exit(0));
console.log(`listening on ${server.hostname}:${server.port}`);
