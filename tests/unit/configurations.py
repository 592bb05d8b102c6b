"""Configurations that several tests begin with."""

# All that a configuration has to have: one slice.
SMALLEST = """
version = 1
[[slice]]
name = "ams-1"
address = "198.51.100.10"
ports = ["9000-9009"]
"""
