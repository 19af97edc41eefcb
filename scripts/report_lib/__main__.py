"""scripts/report, when Python is given this folder."""
import os
import sys

sys.path.insert(1, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from command_line import later, run  # noqa: E402  (needs the path)

sys.exit(run("report", later("command")))
