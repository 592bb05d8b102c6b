"""The C core: receiving, decoding and classifying of netlink messages. Only kernel/ imports it."""
