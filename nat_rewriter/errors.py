"""Everything natctl raises, and the exit code each ends a command with.

::

    NatctlError                                  exit 1
    ├── UsageError                               exit 2   words on the command line that mean nothing
    ├── ConfigError                              exit 2   every problem of a configuration at once
    ├── DecodeError                              exit 1   bytes that are not what the kernel writes
    ├── UnsupportedFeature                       exit 4   names what is needed and what was found
    ├── LockHeld                                 exit 1   another natctl is changing the same namespace
    ├── NamespaceMissing                         exit 1   no such network namespace
    ├── Interrupted                              exit 1   ended half-way by its user; says how to go on
    ├── StateError                               exit 1   what natctl keeps on disk could not be read or written
    ├── LeaseError                               exit 1   a tuple that could not be had, kept or used
    │   ├── SliceExhausted                       exit 1   no port of the slice is free towards that destination
    │   └── LeaseLost                            exit 1   somebody else has the tuple of a lease
    └── KernelError                              exit 1   an operation that the kernel refused
        ├── ConnectFailed                        exit 1   a destination that refused, reset or did not answer
        ├── NftError                             exit 1   libnftables refused, or answered garbage
        │   └── LibraryCrashed                   exit 1   its process crashed or hung: done wholly, or not at all
        ├── NetlinkError                         exit 1
        │   └── RulesetMoved                     exit 1   not the ruleset any more that a change was made for
        └── PermissionNeeded                     exit 4   names the capability

The text of every error is ``operation: reason: 'value'`` in lower case, followed by the expected form where
there is one. Collisions are findings, that is values, never exceptions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_FOUND = 3
EXIT_NOT_HERE = 4


class NatctlError(Exception):
    """An operation that could not be done: ``operation: reason: 'value'``."""

    exit_code = EXIT_FAILED

    def __init__(self, operation: str, reason: str, value: object = None) -> None:
        self.operation = operation
        self.reason = reason
        self.value = value
        shown = "" if value is None else f": {str(value)!r}"
        super().__init__(f"{operation}: {reason}{shown}")


class UsageError(NatctlError):
    """A command was called with words that mean nothing."""

    exit_code = EXIT_USAGE


class Problem(NamedTuple):
    """One fault of a configuration: the file, the key path, the bad value as text, and what is expected."""

    file: str
    path: str
    value: str
    expected: str

    def __str__(self) -> str:
        return f"{self.file}: {self.path}: {self.value}: {self.expected}"


class ConfigError(NatctlError):
    """A configuration with one or more problems, all of them listed in ``problems``."""

    exit_code = EXIT_USAGE

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("read configuration", "\n".join(str(problem) for problem in problems))

    def __str__(self) -> str:
        return self.reason


class DecodeError(NatctlError):
    """Bytes that do not follow the format the kernel writes."""


class UnsupportedFeature(NatctlError):
    """Something this kernel, nft or system does not offer: its name, what it needs, what was found."""

    exit_code = EXIT_NOT_HERE

    def __init__(self, name: str, needs: str, found: str) -> None:
        self.name = name
        self.needs = needs
        self.found = found
        super().__init__(name, f"not supported here: needs {needs}, found {found}")


class LockHeld(NatctlError):
    """Another process holds the lock of the same table and network namespace."""


class NamespaceMissing(NatctlError):
    """The named network namespace does not exist."""

    def __init__(self, name: str) -> None:
        super().__init__("enter network namespace", "does not exist, expected a name under /run/netns or a path", name)


class Interrupted(NatctlError):
    """The user ended what takes its time; nothing is half done, and the reason says how to go on."""


class StateError(NatctlError):
    """What natctl keeps on disk could not be read or written; the kernel is as it would be otherwise."""


class LeaseError(NatctlError):
    """A tuple of a slice could not be had, kept or used; nothing of the attempt is left."""


class SliceExhausted(LeaseError):
    """No port of the slice is free towards that destination."""


class LeaseLost(LeaseError):
    """Somebody else has the tuple of a lease, or its packets leave with another port."""


class KernelError(NatctlError):
    """The kernel refused an operation with an errno."""

    def __init__(self, operation: str, errno: int, detail: str) -> None:
        self.errno = errno
        self.detail = detail
        super().__init__(operation, detail)


class ConnectFailed(KernelError):
    """A destination refused a connection, reset it, or did not answer in time."""


class NftError(KernelError):
    """libnftables refused a transaction, or answered what cannot be read."""


class LibraryCrashed(NftError):
    """The process with libnftables crashed, hung or answered garbage: what it was at was done wholly, or not at all."""


class NetlinkError(KernelError):
    """A netlink request was refused."""


class RulesetMoved(NetlinkError):
    """Somebody else has changed a ruleset of the network namespace meanwhile: nothing was done."""


class PermissionNeeded(KernelError):
    """The operation needs a capability that this process does not have."""

    exit_code = EXIT_NOT_HERE

    def __init__(self, operation: str, capability: str) -> None:
        self.capability = capability
        super().__init__(operation, 1, f"not permitted: needs {capability}")


def exit_code_of(error: BaseException) -> int:
    """Return the exit code that the contract documents for an error."""
    return error.exit_code if isinstance(error, NatctlError) else EXIT_FAILED
