"""How the ways to share a slice compare: contention, leaks, time to success, CPU, cost per flow and per packet."""
