"""Pools in an etcd that loses members, that wants certificates, and that wants a password."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from nat_rewriter.controller.pool_checks import check_store
from nat_rewriter.errors import StateError
from nat_rewriter.model.checkup import Answer
from nat_rewriter.model.pools import Pool, StoreAddress
from nat_rewriter.model.slices import PortRange
from nat_rewriter.pool import etcd_requests as etcd
from nat_rewriter.pool import open_store
from nat_rewriter.pool.etcd_client import EtcdClient
from nat_rewriter.pool.etcd_faults import ends_leases_early
from netns_lab.etcd_cluster import Cluster, etcd_server, loopback

POOL = Pool("ams", (ip_address("198.51.100.10"),), PortRange(8192, 16383), 1024, ttl_s=60)


@pytest.fixture(autouse=True)
def _installed() -> None:
    if missing := [name for name in ("etcd", "etcdctl", "openssl") if not shutil.which(name)]:
        pytest.skip(f"needs {' and '.join(missing)}: apt-get install etcd-server etcd-client openssl")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, loopback(3)) as three:
        yield three


def until(done: Callable[[], object], patience_s: float = 60.0) -> None:
    """Try again and again while the store has no answer."""
    end = time.monotonic() + patience_s
    while True:
        try:
            done()
        except StateError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.2)
        else:
            return


def test_a_cluster_that_loses_members(cluster: Cluster) -> None:
    address = StoreAddress("etcd", endpoints=cluster.endpoints, timeout_s=5)
    with open_store(address) as store:
        until(lambda: store.define(POOL))
        (held,) = store.acquire("ams", "h1", 1)
        first, second, _ = cluster.members
        first.kill()  # the endpoint that is asked first
        until(lambda: store.renew("ams", "h1"))
        assert [each.block for each in store.renew("ams", "h1")] == [held.block]
        second.kill()
        with pytest.raises(StateError, match="no endpoint of etcd could answer"):
            store.acquire("ams", "h2", 1)
        first.start()
        second.start()
        until(lambda: store.renew("ams", "h1"))
        assert {each.block for each in store.holdings("ams") if each.host == "h1"} == {held.block}


@pytest.fixture
def certificates(tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """Make certificates for 127.0.0.1 that sign themselves."""

    def make(name: str) -> tuple[Path, Path]:
        certificate, key = tmp_path / f"{name}.pem", tmp_path / f"{name}.key"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
             "-keyout", str(key), "-out", str(certificate)],
            check=True, capture_output=True,
        )  # fmt: skip
        return certificate, key

    return make


def test_certificates(tmp_path: Path, certificates: Callable[[str], tuple[Path, Path]]) -> None:
    certificate, key = map(str, certificates("server"))
    stranger, _ = map(str, certificates("stranger"))
    options = ("--cert-file", certificate, "--key-file", key, "--trusted-ca-file", certificate, "--client-cert-auth")
    with etcd_server(tmp_path, *options) as port:
        address = StoreAddress(
            "etcd", endpoints=(("127.0.0.1", port),), ca=certificate, certificate=certificate, key=key
        )
        with open_store(address) as store:
            assert store.define(POOL)
            assert store.pools() == [POOL]
        for wrong, told in (
            (replace(address, ca=stranger), "certificate verify failed"),
            (replace(address, certificate=None, key=None), "no endpoint of etcd could answer"),
            (replace(address, ca=None, certificate=None, key=None), "etcd|endpoint"),
            (replace(address, ca=str(tmp_path / "none.pem")), "none.pem"),
        ):
            with pytest.raises(StateError, match=told), open_store(wrong) as store:
                store.pools()


def test_a_password(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("open sesame\n")
    with etcd_server(tmp_path) as port:
        environment = {**os.environ, "ETCDCTL_API": "3"}
        for words in (
            "user add root:r", "user grant-role root root", "user add natctl:open sesame", "role add pools",
            "role grant-permission pools readwrite natctl/ --prefix=true", "user grant-role natctl pools",
            "auth enable",
        ):  # fmt: skip
            arguments = words.split(" ", 2) if "sesame" in words else words.split()
            command = ["etcdctl", "--endpoints", f"127.0.0.1:{port}", *arguments]
            subprocess.run(command, check=True, capture_output=True, env=environment)
        address = StoreAddress("etcd", endpoints=(("127.0.0.1", port),), user="natctl", password_file=str(password))
        with open_store(address) as store:
            assert store.define(POOL)
            assert len(store.acquire("ams", "h1", 2)) == 2
            assert len(store.renew("ams", "h1")) == 2
        password.write_text("wrong\n")
        for wrong, told in (
            (address, "authentication failed"),
            (replace(address, password_file=str(tmp_path / "none")), "read password"),
            (replace(address, user=None, password_file=None), "user name is empty"),
        ):
            with pytest.raises(StateError, match=told), open_store(wrong) as store:
                store.pools()


def test_a_watch(cluster: Cluster) -> None:
    client = EtcdClient(StoreAddress("etcd", endpoints=cluster.endpoints, timeout_s=5))
    until(lambda: client.change([], [etcd.put("natctl/a", "1"), etcd.put("other/a", "1")]))
    happened = client.watch(etcd.under("natctl/"), 0)
    assert next(happened) == []
    (event,) = next(happened)
    assert (event.key, event.value) == ("natctl/a", b"1")
    client.change([], [etcd.delete("natctl/a")])
    assert [(each.key, each.value) for each in next(happened)] == [("natctl/a", None)]
    for member in cluster.members[1:]:
        member.kill()
    with pytest.raises(StateError, match=r"watch the store: .*no leader"):  # and is not just silent
        next(happened)


@pytest.mark.parametrize(
    ("version", "faulty"),
    [
        ("3.3.25", True), ("3.4.23", True), ("3.4.30", True), ("3.4.31", False), ("3.5.0-rc.1", True),
        ("3.5.12", True), ("3.5.13", False), ("3.6.0-alpha.0", False), ("4.0.0", False), ("not decided", False),
    ],
)  # fmt: skip
def test_releases_that_end_leases_early(version: str, faulty: bool) -> None:
    assert ends_leases_early(version) is faulty


def test_faults_of_the_endpoints_that_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with etcd_server(tmp_path) as port:
        address = StoreAddress("etcd", endpoints=(("127.0.0.1", 1), ("127.0.0.1", port)))
        client = EtcdClient(address)
        told = subprocess.run(["etcd", "--version"], check=True, capture_output=True, text=True).stdout
        assert client.versions() == {f"127.0.0.1:{port}": told.split()[2]}
        client.close()
    with open_store(address) as store:
        with pytest.raises(StateError, match="no endpoint of etcd could answer"):
            store.known_faults()
        assert check_store(address).answer is Answer.UNKNOWN
        monkeypatch.setattr(EtcdClient, "versions", lambda _: {"a:1": "3.4.23", "b:1": "3.5.13"})
        (fault,) = store.known_faults()
        assert fault.endswith("(etcd issue 15247, mended in 3.4.31 and 3.5.13): a:1 is 3.4.23")
        assert check_store(address).found == fault
        monkeypatch.setattr(EtcdClient, "versions", lambda _: {"a:1": "3.6.1"})
        assert store.known_faults() == []
        assert check_store(address).answer is Answer.YES
