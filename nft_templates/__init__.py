"""The rule sets that natctl loads, as nft text (Jinja2): read them beside the manual of nft."""
