"""Who runs natctl in a test: root as it is, or an ordinary user."""

# The user with id 0 may map itself only with CAP_SETFCAP (verify_root_map in the kernel); others need nothing.
ORDINARY = ("setpriv", "--bounding-set=-all,+setfcap", "--inh-caps=-all")
