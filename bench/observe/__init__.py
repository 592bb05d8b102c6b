"""Observation measured: a million entries checked, events followed, and storms survived, against what else there is."""
