"""History measured: which engine keeps up, how large a record is, how fast an answer comes."""
