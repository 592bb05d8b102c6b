"""What pools need of the store behind them."""

from __future__ import annotations

from nat_rewriter.errors import NatctlError
from nat_rewriter.model.checkup import Answer, Check, Weight
from nat_rewriter.model.pools import StoreAddress
from nat_rewriter.pool import open_store


def check_store(address: StoreAddress) -> Check:
    """Check that the store is of a release without faults that matter to pools."""
    name, purpose = "pool-store", "pools: a host keeps its slices for as long as it renews them"
    try:
        with open_store(address) as store:
            faults = store.known_faults()
    except NatctlError as error:
        return Check(name, Answer.UNKNOWN, Weight.RECOMMENDED, purpose, str(error), subject=str(address))
    if not faults:
        return Check(name, Answer.YES, Weight.RECOMMENDED, purpose, "no known faults", subject=str(address))
    remedy = "newer releases of these programs"
    return Check(name, Answer.NO, Weight.RECOMMENDED, purpose, "; ".join(faults), remedy, str(address))
