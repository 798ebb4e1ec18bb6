"""websockets, from PyPI."""

import asyncio

from serve import data, message, serve
from websockets import ConnectionClosed, InvalidStatus, __version__
from websockets.asyncio.client import connect


class Client:
    async def open(self, url, subprotocols, compression=None, pongs=False):
        options = {"subprotocols": subprotocols or None, "max_size": None, "proxy": None}
        if compression is False:
            options["compression"] = None
        try:
            self.socket = await connect(url, **options)
        except InvalidStatus:
            return {"refused": True}
        extensions = self.socket.response.headers.get("Sec-WebSocket-Extensions", "")
        return {"subprotocol": self.socket.subprotocol or "", "extensions": extensions}

    async def send(self, **what):
        await self.socket.send(data(what))

    async def send_fragments(self, fragments):
        await self.socket.send([data(fragment) for fragment in fragments])

    async def receive(self):
        try:
            return message(await self.socket.recv())
        except ConnectionClosed:
            return self.closed()

    async def ping(self, payload):
        await (await self.socket.ping(payload))
        return {"pong": payload}  # it waits for the pong with this payload

    async def close(self, code, reason):
        await self.socket.close(code, reason)
        return self.closed()

    def closed(self):
        close = self.socket.protocol.close_rcvd
        return {"close": [close.code, close.reason]} if close else {"close": [1006, ""]}


asyncio.run(serve(Client(), f"websockets {__version__}"))
