"""What ``status`` shows, read from the kernel in one go: flows, the live table, and the sysctls that matter."""

from __future__ import annotations

from nat_rewriter.controller.intent import drift_lines, read_change
from nat_rewriter.detect import Observation, SliceIndex
from nat_rewriter.kernel.conntrack import dump, get_table_size
from nat_rewriter.kernel.nft import KernelNft
from nat_rewriter.kernel.sysctls import read_sysctl
from nat_rewriter.model.overview import Overview
from nat_rewriter.model.policy import Policy
from nat_rewriter.model.ruleset import LiveTable
from nat_rewriter.usage import count_slices, list_busiest, list_strays

STRAY_SETS = ("strays4", "strays6")
SYSCTLS = (
    "net.ipv4.ip_forward",
    "net.ipv6.conf.all.forwarding",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_early_demux",
    "net.netfilter.nf_conntrack_max",
    "net.netfilter.nf_conntrack_acct",
)


def read_overview(policy: Policy, most_destinations: int) -> Overview:
    """Return the state of this network namespace. Raises PermissionNeeded, NftError, NetlinkError."""
    with KernelNft() as nft:
        change = read_change(policy, nft, lambda _: {})
    size = get_table_size()
    observation = Observation(SliceIndex(policy.slices), flows=dump())
    slices, outside = count_slices(observation)
    return Overview(
        controller=policy.controller,
        slices=tuple(slices),
        busiest=tuple(list_busiest(observation, most_destinations)),
        outside=outside,
        strays=tuple(list_strays(_recorded(change.live))),
        differences=tuple(line for line in drift_lines(change) if not line.startswith(("---", "+++", "@@", " "))),
        entries=size.entries,
        max_entries=size.max_entries,
        sysctls={name: value for name in SYSCTLS if (value := read_sysctl(name)) is not None},
    )


def _recorded(live: LiveTable | None) -> list[str]:
    return [element for name in STRAY_SETS for element in (live.elements.get(name, {}) if live else ())]
