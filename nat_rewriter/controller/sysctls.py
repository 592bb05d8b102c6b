"""The sysctls that natctl needs: set where asked to, and given back as they were."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from nat_rewriter.errors import StateError
from nat_rewriter.kernel import store
from nat_rewriter.kernel.sysctls import parse_ports, read_sysctl, write_sysctl
from nat_rewriter.model.generations import Place
from nat_rewriter.model.policy import Policy
from nat_rewriter.model.slices import PortRange, Protocol, merge_ranges, subtract_ranges

RESERVED = "net.ipv4.ip_local_reserved_ports"
FORWARDING = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
_FILE = "sysctls.json"

Reader = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Setting:
    """A sysctl that natctl has set: its name, its value before, and the value it was given."""

    name: str
    before: str
    set: str


def set_sysctls(policy: Policy, place: Place) -> list[Setting]:
    """Set what the policy needs, and give back what only an earlier one needed; return what is set by natctl now.

    Values before are kept first: raises StateError, with nothing set, where they cannot be. Raises KernelError where
    the kernel refuses a value.
    """
    kept = _read(place)
    wanted = {one.name: one for one in wanted_settings(policy, kept, read_sysctl)}
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


def wanted_settings(policy: Policy, kept: Mapping[str, Setting], read: Reader) -> Iterator[Setting]:
    """Yield the settings that a policy needs and that are not so by themselves."""
    ports = _rewritten_ports(policy)
    if ports and (now := read(RESERVED)) is not None:
        before = _ports_before(now, kept.get(RESERVED))
        together = merge_ranges((*parse_ports(before), *ports))
        if together != merge_ranges(parse_ports(before)):
            yield Setting(RESERVED, before, ",".join(map(str, together)))
    for family in _forwarded_families(policy):
        name = FORWARDING[family]
        current = read(name)
        by_itself = kept[name].before if name in kept and current == kept[name].set else current
        if by_itself == "0":
            yield Setting(name, by_itself, "1")


def _rewritten_ports(policy: Policy) -> list[PortRange]:
    """Return the ports that packet rewriting uses: no socket is to be given one of them unasked."""
    return [
        ports
        for owned in policy.slices
        if {Protocol.TCP, Protocol.UDP} & set(owned.protocols)
        for ports in owned.rewrite_ranges
    ]


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
