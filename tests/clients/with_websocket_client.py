"""websocket-client, from PyPI: without asyncio, so it answers pings while it receives."""

import asyncio
import struct

import websocket
from serve import data, message, serve
from websocket import ABNF


class Client:
    async def open(self, url, subprotocols, compression=None, pongs=False):
        # It knows no compression. Others that do not may offer it all the same.
        offer = [] if compression is False else ["Sec-WebSocket-Extensions: permessage-deflate"]
        try:
            self.socket = websocket.create_connection(url, subprotocols=subprotocols, header=offer)
        except websocket.WebSocketBadStatusException:
            return {"refused": True}
        extensions = self.socket.getheaders().get("sec-websocket-extensions", "")
        return {"subprotocol": self.socket.getsubprotocol() or "", "extensions": extensions}

    async def send(self, **what):
        what = data(what)
        (self.socket.send_text if isinstance(what, str) else self.socket.send_binary)(what)

    async def send_fragments(self, fragments):
        for index, fragment in enumerate(fragments):
            text = "text" in fragment
            opcode = ABNF.OPCODE_CONT if index else ABNF.OPCODE_TEXT if text else ABNF.OPCODE_BINARY
            payload = data(fragment).encode() if text else data(fragment)
            fin = int(index == len(fragments) - 1)
            self.socket.send_frame(ABNF.create_frame(payload, opcode, fin))

    async def receive(self):
        while True:
            opcode, came = self.socket.recv_data(control_frame=True)
            if opcode == ABNF.OPCODE_PONG:
                return {"pong": came.decode()}
            if opcode == ABNF.OPCODE_CLOSE:
                self.socket.shutdown()  # it has answered, and leaves the rest to its caller
                code = struct.unpack("!H", came[:2])[0] if came else 1005
                return {"close": [code, came[2:].decode()]}
            if opcode in (ABNF.OPCODE_TEXT, ABNF.OPCODE_BINARY):
                return message(came.decode() if opcode == ABNF.OPCODE_TEXT else came)

    async def ping(self, payload):
        self.socket.ping(payload)
        return await self.receive()

    async def close(self, code, reason):
        self.socket.send_close(code, reason.encode())
        return await self.receive()


asyncio.run(serve(Client(), f"websocket-client {websocket.__version__}"))
