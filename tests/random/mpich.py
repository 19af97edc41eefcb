"""Random configurations with MPICH instead of the MPI of this build: moesim is built with it in a
folder of its own, and the same comparisons are made.

Debian's package libmpich-dev can be installed beside Open MPI. Without it, nothing is tried, and
the status is 77.
"""

import os
import shutil
import subprocess
import sys

import _moesim

HERE = os.path.dirname(os.path.abspath(__file__))
COMPILER, LAUNCHER = "mpicc.mpich", "mpirun.mpich"


def build():
    folder = os.path.join(_moesim.TEMPORARY, "mpich")
    configure = ["cmake", "-S", _moesim.SOURCE, "-B", folder, "-DCMAKE_BUILD_TYPE=Release"]
    configure += [f"-DMPI_C_COMPILER={COMPILER}", "-DMOESIM_TESTS=OFF", "-DMOESIM_WERROR=ON"]
    make = ["cmake", "--build", folder, "--parallel", os.environ.get("MOESIM_JOBS", "2")]
    for words in (configure, [*make, "--target", "moesim", "moesim-f64"]):
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(words)}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return os.path.join(folder, "moesim")


def main():
    missing = [word for word in (COMPILER, LAUNCHER) if not shutil.which(word)]
    if missing:
        print(f"SKIPPED: {missing[0]} is missing (apt-get install mpich libmpich-dev)")
        sys.exit(77)
    program = build()
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    if "libmpich" not in linked:
        sys.exit(f"{program} is not linked with MPICH:\n{linked}")
    environment = {
        **os.environ,
        "MOESIM": program,
        "MOESIM_F64": program + "-f64",
        "MPIRUN": f"timeout -k 5 120 {LAUNCHER} -np",
    }
    words = [sys.executable, os.path.join(HERE, "random_configurations.py"), *sys.argv[1:]]
    sys.exit(subprocess.run(words, env=environment).returncode)


main()
