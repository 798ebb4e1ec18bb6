#!/usr/bin/env python3
"""What 1,000 publishes cost the server: one HTTP batch, or 1,000 messages on one WebSocket.

usage: measure.py FANWIRE [ROUNDS]

Starts the server with one shard on CPU 0, opens ten members of the room, and publishes 1,000 times
the same message both ways, ROUNDS times in turns (default 40). CPU time is that of all of the
server's threads (/proc/PID/task/*/schedstat, nanoseconds). Every round waits until every member has
got all messages. Prints the medians and the median of the ratios of single rounds.
"""

import base64, glob, json, os, socket, statistics, struct, subprocess, sys, time

MEMBERS, PUBLISHES, ROOM = 10, 1000, "lobby"
CONTENT = {"text": "x" * 48}


def frame(opcode, payload):
    head = bytes([0x80 | opcode]) + (bytes([0x80 | len(payload)]) if len(payload) < 126
                                     else bytes([0xFE]) + struct.pack(">H", len(payload)))
    return head + b"\0\0\0\0" + payload  # a masking key of zeros: the payload as it is


class Client:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(f"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode())
        self.ahead = b""
        while b"\r\n\r\n" not in self.ahead:
            self.ahead += self.socket.recv(65536)
        head, self.ahead = self.ahead.split(b"\r\n\r\n", 1)
        assert b" 101 " in head, head
        self.send({"type": "join", "room_id": ROOM})
        self.await_types({"joined": 1})

    def send(self, message):
        self.socket.sendall(frame(1, json.dumps(message).encode()))

    def await_types(self, wanted):
        """Reads until so many messages of each type have come."""
        wanted = dict(wanted)
        while any(count > 0 for count in wanted.values()):
            while len(self.ahead) < 4 or len(self.ahead) < self.end():
                more = self.socket.recv(1 << 20)
                assert more, "the server has gone"
                self.ahead += more
            at = 0
            while len(self.ahead) - at >= 4 and len(self.ahead) >= self.end(at):
                end = self.end(at)
                kind = json.loads(self.ahead[at + (4 if self.ahead[at + 1] == 126 else 2):end])["type"]
                assert kind in wanted, kind
                wanted[kind] -= 1
                at = end
            self.ahead = self.ahead[at:]

    def end(self, at=0):
        length = self.ahead[at + 1]
        return at + 2 + length if length < 126 else at + 4 + struct.unpack_from(">H", self.ahead, at + 2)[0]


def cpu(pid):
    return sum(int(open(path).read().split()[0]) for path in glob.glob(f"/proc/{pid}/task/*/schedstat"))


def main():
    fanwire, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 40
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
    ws, admin = ports
    server = subprocess.Popen([fanwire, "serve", "--shards", "1", "--cpus", "0", "--listen", f"127.0.0.1:{ws}",
                               "--admin", f"127.0.0.1:{admin}"], stderr=subprocess.DEVNULL)
    os.sched_setaffinity(0, {1})
    try:
        for _ in range(100):
            try:
                [socket.create_connection(("127.0.0.1", port)).close() for port in ports]
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        members = [Client(ws) for _ in range(MEMBERS)]
        publisher = Client(ws)
        http = socket.create_connection(("127.0.0.1", admin))
        one = {"type": "broadcast", "room_id": ROOM, "content": CONTENT}
        messages = frame(1, json.dumps(one).encode()) * PUBLISHES
        batch = json.dumps({"items": [{"room_id": ROOM, "content": CONTENT}] * PUBLISHES}).encode()
        request = (f"POST /v1/publish/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                   f"Content-Length: {len(batch)}\r\n\r\n").encode() + batch

        def over_websocket():
            publisher.socket.sendall(messages)

        def over_http():
            http.sendall(request)
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += http.recv(65536)
            head, body = answer.split(b"\r\n\r\n", 1)
            assert b" 200 " in head, answer
            length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
            while len(body) < length:
                body += http.recv(65536)
            outcomes = json.loads(body)
            assert body.count(b'"offset"') == PUBLISHES, outcomes

        costs = {over_websocket: [], over_http: []}
        for number in range(rounds + 2):
            ways = [over_websocket, over_http]
            for way in ways if number % 2 else reversed(ways):
                before = cpu(server.pid)
                way()
                for client in [*members, publisher]:
                    client.await_types({"broadcast": PUBLISHES})
                time.sleep(0.05)
                if number >= 2:  # the first two warm up
                    costs[way].append((cpu(server.pid) - before) / 1000 / PUBLISHES)
        ws_us, http_us = costs[over_websocket], costs[over_http]
        ratio = statistics.median(h / w for h, w in zip(http_us, ws_us))
        print(f"{rounds} rounds of {PUBLISHES} publishes, {MEMBERS} members and the publisher, one shard")
        for name, values in (("WebSocket", ws_us), ("HTTP batch", http_us)):
            print(f"{name:11} {statistics.median(values):6.2f} us of server CPU per publish "
                  f"({min(values):.2f}..{max(values):.2f})")
        print(f"ratio       {ratio:6.2f}")
    finally:
        server.terminate()
        server.wait()


main()
