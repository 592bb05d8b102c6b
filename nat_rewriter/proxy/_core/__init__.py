"""The relay: the C core of the proxy. Only proxy/relay.py and the tests of its parsers import it."""
