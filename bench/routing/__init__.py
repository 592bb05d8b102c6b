"""What each answer to early demux costs the ordinary sockets of a host."""
