"""Does what the lines on standard input say: the same for every client in Python."""

import asyncio
import base64
import json
import sys
import traceback


def data(message):
    """The text or the bytes of a message that is to be sent."""
    return message["text"] if "text" in message else base64.b64decode(message["binary"])


def message(data):
    """A message that came."""
    if isinstance(data, str):
        return {"text": data}
    return {"binary": base64.b64encode(data).decode()}


async def serve(client, name, cannot=()):
    """Says what the client is, then answers each line with what the method of that name gives.

    Lines are waited for on another thread, so that the client can answer pings meanwhile.
    """
    print(json.dumps({"client": name, "cannot": list(cannot)}), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        command = json.loads(line)
        try:
            answer = await getattr(client, command.pop("do"))(**command) or {}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)
