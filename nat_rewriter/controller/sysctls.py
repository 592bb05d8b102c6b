"""The sysctls that natctl needs: set where asked to, and given back as they were."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from nat_rewriter.controller.generations import Warn
from nat_rewriter.controller.socket_ports import RANGE, RESERVED, keep_apart, rewritten_ports
from nat_rewriter.errors import StateError
from nat_rewriter.kernel import store
from nat_rewriter.kernel.sysctls import parse_ports, parse_range, read_sysctl, write_sysctl
from nat_rewriter.model.generations import Place
from nat_rewriter.model.policy import Policy
from nat_rewriter.model.slices import PortRange, merge_ranges, subtract_ranges

FORWARDING = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
_FILE = "sysctls.json"

Reader = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Setting:
    """A sysctl that natctl has set: its name, its value before, and the value it was given."""

    name: str
    before: str
    set: str


def set_sysctls(policy: Policy, place: Place, warn: Warn) -> list[Setting]:
    """Set what the policy needs, and give back what only an earlier one needed; return what is set by natctl now.

    Values before are kept first: raises StateError, with nothing set, where they cannot be. Raises KernelError where
    the kernel refuses a value.
    """
    kept = _read(place)
    wanted = {one.name: one for one in wanted_settings(policy, kept, read_sysctl, warn)}
    _write(place, wanted.values())
    for name in kept.keys() - wanted.keys():
        _give_back(kept[name])
    for setting in wanted.values():
        if read_sysctl(setting.name) != setting.set:
            write_sysctl(setting.name, setting.set)
    return list(wanted.values())


def restore_sysctls(place: Place) -> list[Setting]:
    """Give back what natctl has set; return what was left alone because somebody else has changed it since."""
    kept = _read(place)
    changed = [setting for setting in kept.values() if not _give_back(setting)]
    store.remove_files([_path(place)] if kept else [])
    return changed


def wanted_settings(policy: Policy, kept: Mapping[str, Setting], read: Reader, warn: Warn) -> Iterator[Setting]:
    """Yield the settings that a policy needs and that are not so by themselves."""
    yield from _ports_apart(rewritten_ports(policy.slices), kept, read, warn)
    for family in _forwarded_families(policy):
        name = FORWARDING[family]
        current = read(name)
        if current is not None and (by_itself := _before(current, kept.get(name))) == "0":
            yield Setting(name, by_itself, "1")


def _ports_apart(taken: list[PortRange], kept: Mapping[str, Setting], read: Reader, warn: Warn) -> Iterator[Setting]:
    """Yield what keeps taken ports from being given to sockets, unless it is so by itself."""
    reserved, given = read(RESERVED), read(RANGE)
    if not taken or reserved is None or given is None:
        return
    before = {RESERVED: _ports_before(reserved, kept.get(RESERVED)), RANGE: _before(given, kept.get(RANGE))}
    apart = keep_apart(parse_range(before[RANGE]), parse_ports(before[RESERVED]), taken)
    if apart is None:
        warn(f"{RESERVED} is left as it is: with all ports of slices in it, sockets of this host would get none")
    elif apart.value != before[apart.sysctl]:
        yield Setting(apart.sysctl, before[apart.sysctl], apart.value)


def _before(now: str, kept: Setting | None) -> str:
    return kept.before if kept and now == kept.set else now


def _ports_before(now: str, kept: Setting | None) -> str:
    """Return what is reserved without natctl's doing: where somebody changed the list since, all but what it added."""
    if kept is None:
        return now
    if kept.set == now:
        return kept.before
    added = subtract_ranges(parse_ports(kept.set), parse_ports(kept.before))
    return ",".join(map(str, merge_ranges(subtract_ranges(parse_ports(now), added))))


def _forwarded_families(policy: Policy) -> set[int]:
    rules = [owned for rule in policy.snat for owned in rule.slices] + [rule.slice for rule in policy.dnat]
    return {owned.address.version for owned in rules}


def _give_back(setting: Setting) -> bool:
    """Set the value before, unless somebody else has changed it since; tell whether it was as natctl left it."""
    if read_sysctl(setting.name) != setting.set:
        return False
    write_sysctl(setting.name, setting.before)
    return True


def _path(place: Place) -> Path:
    return place.directory / _FILE


def _read(place: Place) -> dict[str, Setting]:
    content = store.read_file(_path(place))
    try:
        return {fields["name"]: Setting(**fields) for fields in json.loads(content)} if content else {}
    except (ValueError, TypeError, KeyError):
        raise StateError("read state", "is damaged, expected the sysctls that natctl has set", _path(place)) from None


def _write(place: Place, settings: Iterable[Setting]) -> None:
    store.make_directory(place.directory)
    content = json.dumps([asdict(setting) for setting in settings], indent=1)
    store.write_file(_path(place), content.encode() + b"\n")
