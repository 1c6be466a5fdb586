"""`python -m vsp_report`: the command `vsp-report` where no script is installed."""

import sys

from vsp_report.cli import main

if __name__ == "__main__":
    sys.exit(main())
