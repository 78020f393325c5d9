"""`python -m mcm` is the command `mcm`."""

from __future__ import annotations

from mcm.cli import main

if __name__ == "__main__":
    main()
