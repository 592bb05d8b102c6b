"""Public fakes for tests of natctl and of programs that use it."""
