"""Frozen values and enums of the field: no I/O, no clock, no text for people."""
