"""Public fakes for tests of natctl and of programs that use it."""

from nat_rewriter.testing.nft import FakeNft

__all__ = ["FakeNft"]
