"""How the ways to use a port of a slice compare: speed, processor time, and what happens where others want it too."""
