"""How the C core is compiled: cffi API mode, one stable-ABI module for every Python from 3.11 on.

Structures and functions are declared as core.h has them; cffi asks the compiler for sizes, offsets and the values of
constants, so that a mistake here is a compile error and no kernel constant is typed twice.
"""

from __future__ import annotations

import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
SOURCES = (
    "decode.c", "flows.c", "filter.c", "sockets.c", "receive.c", "pump.c", "slices.c", "uses.c", "sieve.c", "index.c",
    "elements.c", "connect.c", "ask.c",
)  # fmt: skip

DECLARED = ("core.h", "elements.h")  # what Python is given

# Headers and the integer constants that kernel/ takes from them.
HEADERS = (
    "sys/socket.h",
    "linux/netlink.h",
    "linux/netfilter/nfnetlink.h",
    "linux/netfilter/nfnetlink_conntrack.h",
    "linux/netfilter/nf_conntrack_tcp.h",
    "linux/inet_diag.h",
    "linux/sock_diag.h",
)
CONSTANTS = """
    SO_RCVBUFFORCE SO_MEMINFO NETLINK_NETFILTER NETLINK_SOCK_DIAG SOL_NETLINK NETLINK_BROADCAST_ERROR NETLINK_EXT_ACK
    NLMSG_ERROR NLMSG_DONE NLMSG_HDRLEN NLM_F_REQUEST NLM_F_ACK NLM_F_DUMP NLM_F_CREATE NLM_F_EXCL
    NLM_F_ACK_TLVS NLM_F_CAPPED NLMSGERR_ATTR_MSG NLA_F_NESTED NLA_TYPE_MASK
    NFNL_SUBSYS_CTNETLINK NFNLGRP_CONNTRACK_NEW NFNLGRP_CONNTRACK_UPDATE NFNLGRP_CONNTRACK_DESTROY
    IPCTNL_MSG_CT_NEW IPCTNL_MSG_CT_GET IPCTNL_MSG_CT_DELETE IPCTNL_MSG_CT_GET_STATS_CPU IPCTNL_MSG_CT_GET_STATS
    CTA_TUPLE_ORIG CTA_TUPLE_REPLY CTA_STATUS CTA_STATUS_MASK CTA_TIMEOUT CTA_MARK CTA_MARK_MASK CTA_ID CTA_ZONE
    CTA_NAT_SRC CTA_NAT_DST CTA_FILTER CTA_FILTER_ORIG_FLAGS CTA_FILTER_REPLY_FLAGS CTA_PROTOINFO CTA_PROTOINFO_TCP
    CTA_PROTOINFO_TCP_STATE CTA_PROTOINFO_TCP_FLAGS_ORIGINAL CTA_PROTOINFO_TCP_FLAGS_REPLY IP_CT_TCP_FLAG_BE_LIBERAL
    CTA_TUPLE_IP CTA_TUPLE_PROTO CTA_IP_V4_SRC CTA_IP_V4_DST CTA_IP_V6_SRC CTA_IP_V6_DST
    CTA_PROTO_NUM CTA_PROTO_SRC_PORT CTA_PROTO_DST_PORT CTA_PROTO_ICMP_ID CTA_PROTO_ICMP_TYPE CTA_PROTO_ICMP_CODE
    CTA_PROTO_ICMPV6_ID CTA_PROTO_ICMPV6_TYPE CTA_PROTO_ICMPV6_CODE
    CTA_NAT_V4_MINIP CTA_NAT_V4_MAXIP CTA_NAT_V6_MINIP CTA_NAT_V6_MAXIP CTA_NAT_PROTO
    CTA_PROTONAT_PORT_MIN CTA_PROTONAT_PORT_MAX
    CTA_STATS_FOUND CTA_STATS_INVALID CTA_STATS_INSERT CTA_STATS_INSERT_FAILED CTA_STATS_DROP CTA_STATS_EARLY_DROP
    CTA_STATS_ERROR CTA_STATS_SEARCH_RESTART CTA_STATS_CLASH_RESOLVE CTA_STATS_CHAIN_TOOLONG
    CTA_STATS_GLOBAL_ENTRIES CTA_STATS_GLOBAL_MAX_ENTRIES
    SOCK_DIAG_BY_FAMILY SOCK_DESTROY SK_MEMINFO_DROPS SK_MEMINFO_VARS
"""


def declarations(header: str) -> str:
    """Return what cffi parses of core.h: the header less its preprocessor lines, and the kernel's constants."""
    without_preprocessor = re.sub(r"^#.*$", "", header, flags=re.MULTILINE)
    constants = "".join(f"#define {name} ...\n" for name in CONSTANTS.split())
    # The bit enums are written as shifts, which cffi leaves to the compiler.
    return re.sub(r"= 1 << \d+", "= ...", without_preprocessor) + constants


ffibuilder = FFI()
ffibuilder.cdef(declarations("".join((HERE / name).read_text(encoding="utf-8") for name in DECLARED)))
ffibuilder.set_source(
    "nat_rewriter.kernel._core._native",
    "".join([*(f"#include <{name}>\n" for name in HEADERS), *(f'#include "{name}"\n' for name in DECLARED)]),
    sources=[str(HERE / name) for name in SOURCES],
    include_dirs=[str(HERE)],
    depends=[str(HERE / name) for name in (*DECLARED, "decode.h", "siphash.h", "slices.h", "table.h", "uses.h")],
    extra_compile_args=["-O2", "-std=gnu11", "-Wall", "-Wextra", "-fno-strict-aliasing", "-pthread"],
    extra_link_args=["-pthread"],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
