"""aiohttp, from PyPI."""

import asyncio

import aiohttp
from serve import data, message, serve


class Client:
    def __init__(self, session):
        self.session = session

    async def open(self, url, subprotocols, compression=None, pongs=False):
        # Compression is off unless somebody asks for it.
        compress = 0 if compression is False else 15
        try:
            self.socket = await self.session.ws_connect(
                url,
                protocols=subprotocols,
                compress=compress,
                max_msg_size=0,
                # It answers pings by itself, and keeps pongs to itself; or neither.
                autoping=not pongs,
            )
        except aiohttp.WSServerHandshakeError:
            return {"refused": True}
        extensions = "permessage-deflate" if self.socket.compress else ""
        return {"subprotocol": self.socket.protocol or "", "extensions": extensions}

    async def send(self, **what):
        what = data(what)
        await (self.socket.send_str if isinstance(what, str) else self.socket.send_bytes)(what)

    async def receive(self):
        came = await self.socket.receive()
        while came.type == aiohttp.WSMsgType.PING:
            await self.socket.pong(came.data)
            came = await self.socket.receive()
        match came.type:
            case aiohttp.WSMsgType.PONG:
                return {"pong": came.data.decode()}
            case aiohttp.WSMsgType.CLOSE:
                return {"close": [came.data, came.extra or ""]}
            case aiohttp.WSMsgType.TEXT | aiohttp.WSMsgType.BINARY:
                return message(came.data)
            case other:
                raise ConnectionError(f"{other.name}: {came.data!r}")

    async def ping(self, payload):
        await self.socket.ping(payload.encode())
        return await self.receive()

    async def close(self, code, reason):
        await self.socket.close(code=code, message=reason.encode())
        # It keeps the code that came, and no reason.
        return {"close": [self.socket.close_code, ""]}


async def main():
    async with aiohttp.ClientSession() as session:
        # Every frame that it writes is the last of its message: even send_frame() sets FIN.
        await serve(Client(session), f"aiohttp {aiohttp.__version__}", ["send_fragments"])


asyncio.run(main())
