"""What it costs a host to hand a packet over to the one that owns its port, against forwarding it by a route."""
