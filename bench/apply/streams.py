"""Many TCP streams of known bytes: ``serve ADDRESS PORT FLOWS`` receives and compares, ``send …`` sends until told.

The bytes of a stream repeat after 251, so that what is lost, doubled or out of place shows. Each prints one JSON object
at its end: the bytes of each stream, wrong ones, resets, and (serve) how many bytes came in each tenth of a second.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from collections import Counter
from typing import Any

PERIOD = 251
CHUNK = 16_384
PATTERN = bytes(range(PERIOD)) * (2 + CHUNK // PERIOD)
BACKLOG = 1024
CONNECT_WITHIN_S = 60.0
ENDS_WITHIN_S = 60.0
SLOT_S = 0.1


def serve(address: str, port: int, flows: int) -> dict[str, Any]:
    """Receive the streams until all have ended."""
    received, slots, wrong, resets = [0] * flows, Counter[int](), 0, 0
    selector = selectors.DefaultSelector()
    with socket.create_server((address, port), backlog=BACKLOG) as listener:
        print("ready", flush=True)
        for number in range(flows):
            stream, _ = listener.accept()
            stream.setblocking(False)
            selector.register(stream, selectors.EVENT_READ, number)
    print("connected", flush=True)
    while selector.get_map():
        for key, _ in selector.select():
            number, stream = key.data, key.fileobj
            assert isinstance(stream, socket.socket)
            try:
                content = stream.recv(CHUNK)
            except ConnectionError:
                content, resets = b"", resets + 1
            if not content:
                selector.unregister(stream)
                stream.close()
                continue
            start = received[number] % PERIOD
            wrong += content != PATTERN[start : start + len(content)]
            received[number] += len(content)
            slots[int(time.monotonic() / SLOT_S)] += len(content)
    return {"bytes": sorted(received), "wrong": wrong, "resets": resets, "slots": sorted(slots.items())}


def send(address: str, port: int, flows: int) -> dict[str, Any]:
    """Send the streams until standard input ends, then all that is still in the buffers."""
    sent, resets = [0] * flows, 0
    selector = selectors.DefaultSelector()
    for number in range(flows):
        stream = socket.create_connection((address, port), timeout=CONNECT_WITHIN_S)
        stream.setblocking(False)
        selector.register(stream, selectors.EVENT_WRITE, number)
    selector.register(sys.stdin, selectors.EVENT_READ, None)
    told = False
    while not told:
        for key, _ in selector.select():
            if key.data is None:
                told = True
                continue
            start = sent[key.data] % PERIOD
            try:
                assert isinstance(key.fileobj, socket.socket)
                sent[key.data] += key.fileobj.send(PATTERN[start : start + CHUNK])
            except BlockingIOError:
                continue
            except ConnectionError:
                selector.unregister(key.fileobj)
                resets += 1
    for key in list(selector.get_map().values()):
        if isinstance(key.fileobj, socket.socket):
            key.fileobj.shutdown(socket.SHUT_WR)
    return {"bytes": sorted(sent), "resets": resets}


def main() -> None:
    """Do as the command line says."""
    way, address, port, flows = sys.argv[1:5]
    found = (serve if way == "serve" else send)(address, int(port), int(flows))
    print(json.dumps(found), flush=True)
    sys.stdin.read()  # the sockets live until this process is told to end


if __name__ == "__main__":
    main()
