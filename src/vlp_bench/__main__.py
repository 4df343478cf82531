"""`python -m vlp_bench`."""

import sys

from vlp_bench.cli import main

sys.exit(main())
