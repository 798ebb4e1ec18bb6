// A broadcast server on npm ws, as the broadcast example of its README has it.
//
// The path is the room. Every message goes verbatim, same opcode, to all members of the room, the
// sender included. ws has no public way to frame a message once for many sockets, so every send
// makes its own header. It sets TCP_NODELAY and compresses nothing unless told to.
//
// usage: node server.js HOST PORT

const { WebSocketServer, WebSocket } = require("ws");

const [host, port] = process.argv.slice(2);
const rooms = new Map();
const server = new WebSocketServer({ host, port: Number(port), perMessageDeflate: false });

server.on("connection", (socket, request) => {
  const path = request.url;
  let room = rooms.get(path);
  if (room === undefined) rooms.set(path, (room = new Set()));
  room.add(socket);
  socket.on("message", (data, isBinary) => {
    for (const member of room) {
      if (member.readyState === WebSocket.OPEN) member.send(data, { binary: isBinary });
    }
  });
  socket.on("close", () => {
    room.delete(socket);
    if (room.size === 0 && rooms.get(path) === room) rooms.delete(path);
  });
  // A connection that breaks is closed next; that is all there is to do about it.
  socket.on("error", () => {});
});

server.on("listening", () => console.log(`listening on ${host}:${port}`));
for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => process.exit(0));
