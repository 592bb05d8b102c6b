"""What a packet costs the egress host under natctl's rules, against one plain SNAT rule."""
