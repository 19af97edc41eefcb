"""How a script starts moesim: which program, in which environment, behind which words of mpirun."""
import os
import shlex
import shutil
import subprocess
import sys

SCRIPTS = os.path.dirname(os.path.abspath(__file__))
NOT_FOUND = (
    "moesim was not found: build it (scripts/run does), or name it in the environment variable"
    " MOESIM"
)


def called(tool):
    """What the user calls a script: scripts/lesson in the repository, moesim-lesson where it is
    installed.
    """
    here = os.path.exists(os.path.join(SCRIPTS, "build-if-needed"))
    return f"scripts/{tool}" if here else f"moesim-{tool}"


def environment():
    """That of scripts/env: more ranks than cores, also as root; and mpirun adds no lines of its own
    to a sentence.
    """
    done = subprocess.run(
        ["bash", "-c", '. "$0" && env -0', os.path.join(SCRIPTS, "env")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    pairs = (os.fsdecode(entry).partition("=") for entry in done.stdout.split(b"\0") if entry)
    return {"OMPI_MCA_orte_execute_quiet": "1", **{name: value for name, _, value in pairs}}


def program():
    """The moesim to run: $MOESIM, the repository's build (built now where it has to be), or the one
    that is installed; None when there is none.
    """
    if os.environ.get("MOESIM"):
        return os.path.abspath(os.environ["MOESIM"])
    if os.path.exists(os.path.join(SCRIPTS, "build-if-needed")):
        if subprocess.run([os.path.join(SCRIPTS, "build-if-needed")], check=False).returncode:
            sys.exit(1)  # it has said why
        return os.path.join(os.path.dirname(SCRIPTS), "build", "moesim")
    beside = os.path.join(
        os.path.dirname(os.path.dirname(os.path.dirname(SCRIPTS))), "bin", "moesim"
    )
    return beside if os.path.exists(beside) else shutil.which("moesim")


def mpirun(ranks):
    """The words in front of the program; $MPIRUN may say others."""
    return [*shlex.split(os.environ.get("MPIRUN") or "mpirun -np"), str(ranks)]
