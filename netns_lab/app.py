"""A small local application with a socket of its own: connects, says what it sees, and stays until its input ends.

``python app.py tcp|udp SOURCE PORT DESTINATION PORT TIMEOUT`` prints one JSON line: ``port`` is what getsockname()
says, ``works`` whether an echo server answered, ``error`` why not, ``seconds`` how long that took. It uses the standard
library alone, so that it starts at once.
"""

import ctypes
import json
import socket
import sys
import time

NAME = "local-app"
_PR_SET_NAME = 15


def attempt(sock: socket.socket, destination: tuple[str, int]) -> str:
    """Connect and let the echo server answer; return why that failed, or nothing."""
    try:
        sock.connect(destination)
        sock.sendall(b"natctl")
        return "" if sock.recv(64) else "closed by the server"
    except OSError as error:
        return "timed out" if isinstance(error, TimeoutError) else (error.strerror or str(error))


def main(protocol: str, source: str, sport: str, destination: str, dport: str, timeout_s: str) -> None:
    """Do what the module says."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, NAME.encode(), 0, 0, 0)
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.settimeout(float(timeout_s))
    sock.bind((source, int(sport)))
    began = time.monotonic()
    error = attempt(sock, (destination, int(dport)))
    seconds = round(time.monotonic() - began, 2)
    print(
        json.dumps({"port": sock.getsockname()[1], "works": not error, "error": error, "seconds": seconds}), flush=True
    )
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
