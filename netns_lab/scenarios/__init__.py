"""The scenarios of ``natctl lab run``: each module is a group of them, and registers its own."""

GROUPS = {
    "collisions": "A NAT flow and a local socket want the same tuple",
    "claims": "How long a tuple is refused",
    "split": "Ports for sockets, ports for rewriting",
    "guard": "What must not leave the host",
    "ports": "How NAT finds a port",
    "ranges": "Slices of several ranges",
    "rules": "Which packets are rewritten, and where to",
    "changes": "What is established stays",
    "fleet": "Five hosts share addresses by a pool in etcd",
    "tunnel": "A tunnel sends from a slice, and a socket has its tuple",
}
