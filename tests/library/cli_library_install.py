"""ctest: timeout=120
libmoesim as it is installed: a header that stands alone in C and in C++, pkg-config, a C program,
the Python module of the prefix, no MPI, and no function that the header does not have.
"""
import os
import re
import shutil
import subprocess
import sys

import _numpy  # noqa: F401 (first of all)
from _moesim import SOURCE, TEMPORARY, check, verdict

BUILD = os.environ.get("MOESIM_BUILD_DIR") or os.path.join(SOURCE, "build")
PREFIX = os.path.join(TEMPORARY, "a prefix")
HERE = os.path.dirname(os.path.abspath(__file__))


def ask(*words, **more):
    environment = {k: v for k, v in os.environ.items() if k != "MOESIM_LIBRARY"}
    done = subprocess.run(words, capture_output=True, text=True, env={**environment, **more})
    check(done.returncode == 0, words[0], done.returncode, done.stdout, done.stderr)
    return done.stdout


def find(name):
    for folder, _, files in os.walk(PREFIX):
        if name in files:
            return folder
    check(False, name, "is not installed")
    return PREFIX


def test_header():
    """Alone in C99 and in C++; the functions of the libraries are those of the header."""
    include = find("moesim.h")
    text = "#include <moesim.h>\nint main(void) { return moesim_version() == 0; }\n"
    for name, compiler, standard in (
        ("alone.c", shutil.which("cc"), "-std=c99"),
        ("alone.cc", shutil.which("c++") or shutil.which("clang++"), "-std=c++11"),
    ):
        if not compiler:
            print("there is no compiler for", name)
            continue
        with open(name, "w") as file:
            file.write(text)
        ask(
            compiler,
            standard,
            "-pedantic",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-I",
            include,
            "-fsyntax-only",
            name,
        )
    with open(os.path.join(include, "moesim.h")) as file:
        declared = set(re.findall(r"MOESIM_API [a-z_ *]*?\*?(moesim_[a-z_]+)\(", file.read()))
    check(len(declared) == 9, declared)
    for library in ("libmoesim.so.0", "libmoesim-f64.so.0"):
        path = os.path.join(find(library), library)
        names = ask("nm", "-D", "--defined-only", path)
        check(set(re.findall(r" [A-Za-z] ([A-Za-z0-9_.]+)", names)) == declared, library, names)
        needed = ask("readelf", "-d", path)
        check("NEEDED" in needed and not re.search("NEEDED.*mpi", needed), library, needed)


def test_c():
    """The program of tests/library/example.c, with the flags of pkg-config."""
    folder = find("moesim.pc")
    results = []
    for package in ("moesim", "moesim-f64"):
        flags = ask("pkg-config", "--cflags", "--libs", package, PKG_CONFIG_PATH=folder)
        words = [x.replace("\0", " ") for x in flags.replace("\\ ", "\0").split()]
        ask("cc", os.path.join(HERE, "example.c"), "-o", package, *words, "-lm")
        lib = os.path.dirname(folder)
        results.append(ask(f"./{package}", LD_LIBRARY_PATH=lib).split("\n"))
    check(results[0] == results[1], results)
    check(sum(map(int, results[0][0].split()[:8])) == 128, results)
    check(results[0][1].startswith("logits [1,1] is nan: allowed are"), results)


def test_python():
    """The module finds the library of its prefix by itself."""
    folder = os.path.dirname(find("_library.py"))
    line = "import moesim; print(moesim.__version__, sum(moesim.route(num_experts=8, devices=4,"
    line += " top_k=2, tokens_per_device=4).counts_per_expert))"
    found = ask(sys.executable, "-c", line, PYTHONPATH=folder)
    check(found.split()[1:] == ["32"], found)


done = subprocess.run(
    ["cmake", "--install", BUILD, "--prefix", PREFIX], capture_output=True, text=True
)
if check(done.returncode == 0, "cmake --install:", done.stderr):
    for test in (test_header, test_c, test_python):
        test()
verdict()
