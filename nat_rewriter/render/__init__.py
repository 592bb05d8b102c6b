"""Policy -> ruleset -> nft text, through the templates in ``nft_templates``."""

from nat_rewriter.render.table import render, ruleset_text

__all__ = ["render", "ruleset_text"]
