#!/usr/bin/env python3
"""A Trunkline client, written from docs/protocol.md (part 2). Needs Python 3.10 and aioquic (pip install aioquic).

`python_client.py HOST:PORT path/to/node-ca.pem` prints what comes in, and sends each line `ADDRESS TEXT` that it reads.
"""

import asyncio
import json
import sys
from contextlib import asynccontextmanager

from aioquic.asyncio import QuicConnectionProtocol, connect
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, StreamDataReceived


class Client(QuicConnectionProtocol):
    def __init__(self, *args, on_message=lambda sender, body: None, **kwargs):
        super().__init__(*args, **kwargs)
        self.on_message = on_message
        self.control, self.streams = None, {}  # the control stream; what has come on streams that have not ended
        self.welcome = self._loop.create_future()
        # Out: id -> (recipient, size, receipt) of what is under way.
        self.last_id, self.sent = 0, {}
        # In: ids below `mark` and those in `above` are taken; `held` has what waits, by what it waits for.
        self.mark, self.above, self.held = 1, set(), {}
        self.done = []  # taken, and still to be answered
        self.closed = asyncio.Event()

    async def hello(self):
        self.control = self._quic.get_next_available_stream_id()
        self.write_line({"cmd": "hello", "version": 1})
        return await self.welcome

    def write_line(self, line):
        self._quic.send_stream_data(self.control, json.dumps(line).encode() + b"\n")
        self.transmit()

    def has_room(self, to):
        window, sent = self.welcome.result()["window"], self.sent.values()
        bytes, to_it = sum(size for _, size, _ in sent), sum(size for other, size, _ in sent if other == to)
        return len(sent) < window["messages"] and bytes < window["bytes"] and to_it < window["conversation_bytes"]

    async def send(self, to, body):
        """Sends once there is room. Gives a future of how the message ends: ("delivered", None), or status and code."""
        while not self.has_room(to):
            await asyncio.sleep(0.005)
        if self.closed.is_set():
            raise ConnectionError("the connection is closed")
        self.last_id += 1
        self.sent[self.last_id] = (to, len(body) + 256, self._loop.create_future())
        # Each message names the one before it, which gives one order over all.
        header = json.dumps({"to": to, "id": self.last_id, "after": self.last_id - 1}).encode() + b"\n"
        stream = self._quic.get_next_available_stream_id(is_unidirectional=True)
        self._quic.send_stream_data(stream, header + body, end_stream=True)
        self.transmit()
        return self.sent[self.last_id][2]

    async def goodbye(self):
        while self.sent:  # it leaves in order: first every message has its receipt
            await asyncio.sleep(0.005)
        self.answer()
        self.write_line({"cmd": "goodbye"})
        await self.closed.wait()

    def quic_event_received(self, event):
        if isinstance(event, StreamDataReceived):
            data = self.streams.pop(event.stream_id, b"") + event.data
            if event.stream_id == self.control:
                *lines, data = data.split(b"\n")
                for line in lines:
                    self.line(json.loads(line))
            elif event.end_stream:
                header, _, body = data.partition(b"\n")
                return self.arrived(json.loads(header), body)
            self.streams[event.stream_id] = data
        elif isinstance(event, ConnectionTerminated):
            self.closed.set()
            if not self.welcome.done():
                self.welcome.set_exception(ConnectionError(event.reason_phrase))
            for number in list(self.sent):
                self.ended(number, "unknown", "the connection is gone")

    def line(self, line):
        if line["cmd"] == "welcome":
            self.welcome.set_result(line)
        elif line["cmd"] == "receipt":
            for first, last in line.get("delivered", []):
                for number in range(first, last + 1):
                    self.ended(number, "delivered", None)
            for failed in line.get("failed", []):
                self.ended(failed["id"], failed["status"], failed["code"])
        # An `error` is followed by a close with the same reason, and what is not known is ignored.

    def ended(self, number, status, code):
        if number in self.sent:
            self.sent.pop(number)[2].set_result((status, code))

    def arrived(self, header, body):
        is_taken = lambda number: number < self.mark or number in self.above
        if is_taken(header["id"]):
            return
        if not is_taken(header.get("after", 0)):
            self.held[header["after"]] = (header, body)
            return
        if not self.done:  # one receipt line for all that comes within 5 ms
            self._loop.call_later(0.005, self.answer)
        while header:
            self.above.add(header["id"])
            while self.mark in self.above:
                self.above.remove(self.mark)
                self.mark += 1
            self.on_message(header["from"], body)
            self.done.append(header["id"])
            header, body = self.held.pop(header["id"], (None, None))

    def answer(self):
        while self.done:  # 1,000 at once stay far below the longest line
            some, self.done = self.done[:1000], self.done[1000:]
            self.write_line({"cmd": "receipt", "delivered": [[number, number] for number in some]})


@asynccontextmanager
async def connected(node, authority, **options):
    host, port = node.replace("[", "").replace("]", "").rsplit(":", 1)
    configuration = QuicConfiguration(alpn_protocols=["trunkline/1"], server_name=host)
    configuration.load_verify_locations(authority)  # no other authority is trusted
    create = lambda *args, **kwargs: Client(*args, **kwargs, **options)
    async with connect(host, int(port), configuration=configuration, create_protocol=create) as client:
        await client.hello()
        yield client
        await client.goodbye()


async def main(node, authority):
    async with connected(node, authority, on_message=print) as client:
        print("you are", client.welcome.result()["address"], flush=True)
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            to, _, text = line.partition(" ")
            (await client.send(to, text.encode())).add_done_callback(lambda receipt: print(*receipt.result()))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
