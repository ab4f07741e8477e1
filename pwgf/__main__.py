"""`python -m pwgf` is the command `pwgf`."""

from .cli import main

raise SystemExit(main())
