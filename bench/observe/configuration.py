"""The configuration that is measured with: a hundred slices on eight addresses, as native/flood.c fills them."""

from __future__ import annotations

from pathlib import Path

ADDRESSES = 8
_SLICES, _FIRST_PORT, _PORTS = 100, 2000, 4000


def write_configuration(path: Path, addresses: int = ADDRESSES, *, marks: bool = False) -> Path:
    """Write a configuration with the slices of the first so many addresses; with ``marks`` local flows are marked."""
    parts = ["version = 1\n"]
    if marks:
        parts.append("[controller]\nlocal_mark = 0x100\n")
    names = []
    for number in range(_SLICES):
        if number % ADDRESSES < addresses:
            first = _FIRST_PORT + number // ADDRESSES * _PORTS
            names.append(f"s{number}")
            parts.append(
                f'[[slice]]\nname = "s{number}"\naddress = "198.51.100.{10 + number % ADDRESSES}"\n'
                f'ports = ["{first}-{first + _PORTS - 1}"]\nprotocols = ["tcp", "udp"]\n'
            )
    parts.append(f'[[snat]]\nname = "clients"\nsource = ["10.0.0.0/8"]\nslices = ["{names[0]}"]\n')
    path.write_text("\n".join(parts))
    return path
