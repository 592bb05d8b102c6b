"""natctl: shares addresses between hosts by port slices, for rewritten packets and sockets alike."""

__version__ = "0.1.0"
