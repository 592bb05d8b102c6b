"""The scenarios of ``natctl lab run``; every module here is loaded, and registers its own."""
