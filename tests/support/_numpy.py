"""Helper of the tests that need NumPy, which is not in every Python: import it first. It starts the
test again with a Python that has NumPy, if this one has none.
"""
import os
import shutil
import subprocess
import sys

try:
    import numpy  # noqa: F401
except ImportError:
    for python in (os.environ.get("MOESIM_PYTHON"), "/usr/bin/python3"):
        if python and shutil.which(python):
            found = subprocess.run([python, "-c", "import numpy"], stderr=subprocess.DEVNULL)
            if found.returncode == 0:
                os.execv(python, [python, *sys.argv])
    print("FAILED: no Python with NumPy (scripts/setup installs python3-numpy)")
    sys.exit(1)
