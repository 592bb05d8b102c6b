"""How the relay is compiled: cffi API mode, one stable-ABI module for every Python from 3.11 on."""

from __future__ import annotations

import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
SOURCES = (
    "address.c", "connection.c", "events.c", "handshake.c", "http.c", "loop.c", "pipes.c", "ports.c", "proxy_header.c",
    "pump.c", "resolve.c", "socks.c", "timers.c", "upstream.c",
)  # fmt: skip

ffibuilder = FFI()
ffibuilder.cdef(re.sub(r"^#.*$", "", (HERE / "relay.h").read_text(encoding="utf-8"), flags=re.MULTILINE))
ffibuilder.set_source(
    "nat_rewriter.proxy._core._native",
    '#include "relay.h"\n',
    sources=[str(HERE / name) for name in SOURCES],
    include_dirs=[str(HERE)],
    depends=[str(HERE / name) for name in ("relay.h", "internal.h")],
    extra_compile_args=["-O2", "-std=gnu11", "-Wall", "-Wextra", "-fno-strict-aliasing", "-pthread"],
    extra_link_args=["-pthread"],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
