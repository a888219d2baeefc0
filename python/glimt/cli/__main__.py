"""``python -m glimt.cli``: the same as the ``glimt`` command."""

import sys

from glimt.cli import main

sys.exit(main())
