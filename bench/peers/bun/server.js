// A broadcast server on Bun's built-in publish (uWebSockets inside), as its documentation has it.
//
// The path is the room. Every message goes verbatim, same opcode, to all members of the room, the
// sender included. Bun sets TCP_NODELAY and compresses nothing unless told to.
//
// usage: bun server.js HOST PORT

const [hostname, port] = process.argv.slice(2);

const server = Bun.serve({
  hostname,
  port: Number(port),
  fetch(request, server) {
    const data = { room: new URL(request.url).pathname };
    if (server.upgrade(request, { data })) return undefined;
    return new Response("This is a WebSocket endpoint.\n", { status: 426 });
  },
  websocket: {
    // No timer that another server of the comparison does not have.
    idleTimeout: 0,
    sendPings: false,
    perMessageDeflate: false,
    open(ws) {
      ws.subscribe(ws.data.room);
    },
    message(ws, message) {
      server.publish(ws.data.room, message);
    },
  },
});

for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => process.exit(0));
console.log(`listening on ${server.hostname}:${server.port}`);
