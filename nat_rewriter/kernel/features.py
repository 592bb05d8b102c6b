"""What this kernel and nft can do, tried out where it changes nothing; and what this process may do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from nat_rewriter.kernel.sysctls import read_sysctl
from nat_rewriter.model.checkup import Answer, Check, Weight

WORKER_WITHIN_S = 60.0
_PACKAGE_ROOT = Path(__file__).parents[2]
_PRIVILEGE = "run it with that capability, e.g. as root: sudo natctl doctor"


class Feature(NamedTuple):
    """Something that is tried: what it is for, and what brings it."""

    weight: Weight
    purpose: str
    remedy: str


# As kernel/feature_worker.py names them, in the order in which they are shown.
FEATURES = {
    "scratch-namespace": Feature(
        Weight.REQUIRED,
        "apply and diff: where a ruleset is tried out",
        "CAP_SYS_ADMIN, or user namespaces that any user may make",
    ),
    "libnftables": Feature(Weight.REQUIRED, "apply and diff", "apt install libnftables1"),
    "nf-tables": Feature(
        Weight.REQUIRED, "apply and diff", "modprobe nf_tables, or a kernel with CONFIG_NF_TABLES_INET"
    ),
    "source-nat": Feature(Weight.REQUIRED, "[[snat]]", "modprobe -a nft_chain_nat nft_nat, or CONFIG_NFT_NAT"),
    "range-maps": Feature(Weight.REQUIRED, "coexist, and slices by client (IPv4)", "Linux 5.6 and nft 1.0.6, or newer"),
    "ipv6-nat": Feature(Weight.RECOMMENDED, "slices of IPv6 addresses", "Linux 5.6 and nft 1.0.6, or newer"),
    "dynamic-sets": Feature(Weight.REQUIRED, "guard", "Linux 5.6 and nft 1.0.6, or newer"),
    "spreading": Feature(Weight.RECOMMENDED, "spread over several ranges", "modprobe -a nft_hash nft_numgen"),
    "reject": Feature(Weight.RECOMMENDED, 'coexist = "refuse" and "split"', "modprobe nft_reject_inet"),
    "ct-timeouts": Feature(
        Weight.RECOMMENDED, 'coexist = "refuse", [controller.timeouts]', "a kernel with CONFIG_NF_CONNTRACK_TIMEOUT"
    ),
    "strip-timestamps": Feature(Weight.OPTIONAL, 'timestamps = "strip"', "Linux 5.18 and nft 1.0.3, or newer"),
    "ctnetlink": Feature(Weight.REQUIRED, "check, watch, flows and status", "modprobe nf_conntrack_netlink"),
    "conntrack-events": Feature(
        Weight.RECOMMENDED, "watch", "sysctl -w net.netfilter.nf_conntrack_events=1, with CONFIG_NF_CONNTRACK_EVENTS"
    ),
    "sock-diag": Feature(Weight.REQUIRED, "check and watch: whose socket it is", "modprobe -a tcp_diag udp_diag"),
    "sock-destroy": Feature(
        Weight.OPTIONAL, "ending sockets that lost their port", "a kernel with CONFIG_INET_DIAG_DESTROY"
    ),
    "user-namespaces": Feature(Weight.OPTIONAL, "natctl lab without root", ""),
}

# What forbids user namespaces to ordinary users: sysctl, the value that forbids, the value that permits.
_FORBIDDING = (
    ("user.max_user_namespaces", "0", "15000"),
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
)


class Capability(NamedTuple):
    """A capability: its bit (capability.h), and what it is for."""

    bit: int
    weight: Weight
    purpose: str


CAPABILITIES = {
    "CAP_NET_ADMIN": Capability(12, Weight.REQUIRED, "everything that reads or changes the kernel"),
    "CAP_SYS_ADMIN": Capability(21, Weight.OPTIONAL, "--netns, and natctl lab"),
    "CAP_SYS_PTRACE": Capability(19, Weight.RECOMMENDED, "naming the processes of other users in findings"),
}


def list_features() -> list[Check]:
    """Return what the kernel and nft can do; nothing outside a network namespace made for this is touched."""
    answers = _tried()
    return [_feature_check(name, feature, answers.get(name)) for name, feature in FEATURES.items()]


def list_privileges() -> list[Check]:
    """Return what this process may do."""
    effective = _effective_capabilities()
    return [_capability_check(name, wanted, effective) for name, wanted in CAPABILITIES.items()]


def has_capability(name: str) -> bool:
    """Tell whether this process has a capability of :data:`CAPABILITIES`, in its user namespace."""
    return bool(_effective_capabilities() >> CAPABILITIES[name].bit & 1)


def _tried() -> Mapping[str, tuple[Answer, str]]:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "nat_rewriter.kernel.feature_worker"],
            env={**os.environ, "PYTHONPATH": str(_PACKAGE_ROOT)},
            capture_output=True,
            text=True,
            timeout=WORKER_WITHIN_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return dict.fromkeys(FEATURES, (Answer.UNKNOWN, f"could not be tried: {error}"))
    said = done.stderr.strip().splitlines()[-1:] or ["for that it needs a network namespace of its own"]
    untried = f"could not be tried: {said[0]}"
    return dict.fromkeys(FEATURES, (Answer.UNKNOWN, untried)) | dict(_answers(done.stdout))


def _answers(output: str) -> Iterator[tuple[str, tuple[Answer, str]]]:
    for line in output.splitlines():
        name, answer, found = json.loads(line)
        yield name, (Answer(answer), found)


def _feature_check(name: str, feature: Feature, told: tuple[Answer, str] | None) -> Check:
    answer, found = told or (Answer.UNKNOWN, "was not tried")
    remedy = "" if answer is Answer.YES else feature.remedy
    if name == "user-namespaces" and answer is not Answer.YES:
        remedy = _permit_user_namespaces()
    elif "Could not resolve protocol name" in found:
        remedy = "apt install netbase"  # /etc/protocols, where nft looks names up
    return Check(name, answer, feature.weight, feature.purpose, found, remedy)


def _permit_user_namespaces() -> str:
    for name, forbids, permits in _FORBIDDING:
        if read_sysctl(name) == forbids:
            return f"sysctl -w {name}={permits}"
    return "a system, or a container, that permits user namespaces"


def _effective_capabilities() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _capability_check(name: str, wanted: Capability, effective: int) -> Check:
    if effective >> wanted.bit & 1:
        return Check(name, Answer.YES, wanted.weight, wanted.purpose, "this process has it")
    return Check(name, Answer.NO, wanted.weight, wanted.purpose, "this process does not have it", _PRIVILEGE)
