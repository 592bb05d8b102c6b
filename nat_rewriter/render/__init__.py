"""Policy -> ruleset -> nft text, through the templates in ``nft_templates``."""

from nat_rewriter.render.table import outline, render, ruleset_text

__all__ = ["outline", "render", "ruleset_text"]
