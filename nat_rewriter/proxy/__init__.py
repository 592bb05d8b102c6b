"""Carrying TCP: connections that are taken in here go on from a slice."""
