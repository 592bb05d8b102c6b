"""``python -m nat_rewriter`` is ``natctl``."""

from nat_rewriter.cli.start import main

if __name__ == "__main__":
    main()
