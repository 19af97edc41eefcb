"""ctest: labels=long timeout=1800
docs/extending.md taken literally: its blocks are applied to a copy of the tree, which builds
without a warning; the new rows pass the tests that go through all rows, the finite differences
among them; the program runs with each; and a wrong derivative is found, as is a factor that is not
its twin's.
"""
import glob
import os
import shutil
import subprocess

import _extending
import _moesim as m

TREE = os.path.join(m.TEMPORARY, "copy")
BUILD = os.path.join(TREE, "build")
TESTS = (
    "unit_tables",
    "unit_balance",
    "unit_router_methods",
    "unit_keys",
    "mpi_layer_backward-f64",
)
# Compilers by way of ccache where it is installed, without this folder's name in what it compares.
ENVIRONMENT = m.environment(
    PATH="/usr/lib/ccache" + os.pathsep + os.environ["PATH"],
    CCACHE_BASEDIR=TREE,
    CCACHE_NOHASHDIR="1",
)


def call(*words):
    return subprocess.run(
        words, cwd=TREE, env=ENVIRONMENT, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def build(*targets):
    done = call("cmake", "--build", BUILD, "-j2", "--target", *targets)
    return m.check(done.returncode == 0, "it does not build:", (done.stdout + done.stderr)[-3000:])


def run_test(name):
    """A test program by itself, on one rank where it talks."""
    program = os.path.join(BUILD, "tests", name)
    words = [*m.MPIRUN, "1", program] if name.startswith("mpi") else [program]
    return call(*words)


def edit(path, old, new):
    """Returns the text as it was."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    m.check(text.count(old) == 1, path, "has not one", old)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text.replace(old, new))
    return text


def test_rows():
    for name in TESTS:
        done = run_test(name)
        m.check(done.returncode == 0, name, "fails:", (done.stdout + done.stderr)[-2000:])


def run(*settings):
    words = [word for s in ("cluster.devices=8", *settings) for word in ("--set", s)]
    quickstart = os.path.join(TREE, "configs", "quickstart.ini")
    program = os.path.join(BUILD, "moesim")
    out = os.path.join(m.TEMPORARY, "out")
    done = call(*m.MPIRUN, "2", program, quickstart, *words, "--out", out, "--full")
    shutil.rmtree(out, True)
    m.check(done.returncode == 0, settings, "fails:", done.stdout + done.stderr)
    return done.stdout


def test_program():
    m.check("softplus" in run("router.score_func=softplus"), "the header does not name the score")
    out = run("router.method=threshold", "router.threshold=0.05", "router.group_limit=none")
    m.check("threshold" in out, "the header does not name the method")
    out = run("balance.aux_form=overload", "balance.alpha_expert=0.01")
    line = [words for words in map(str.split, out.splitlines()) if words[:1] == ["overload"]]
    m.check(line and float(line[0][1]) > 0 and float(line[0][2]) == 0, "no line of the loss:", line)


def test_faults():
    """Each of the faults that the page speaks about, alone."""
    for path, good, bad, test, words in (
        (
            "src/router/scores.c",
            "d[i] = 1 / (1 + exp(-z[i]));",
            "(void)z, d[i] = s[i];",
            "unit_tables",
            "softplus, temperature 1, ds_0/dz_0: difference",
        ),
        ("src/router/methods.c", "k == first ||", "", "unit_router_methods", "wanted = 1"),
        ("src/balance/losses.c", "f > 1 ? f - 1 : 0", "f > 1 ? f : 0", "unit_balance", "overload"),
    ):
        whole = edit(os.path.join(TREE, path), good, bad)
        if build(test):
            done = run_test(test)
            m.check(done.returncode == 1, test, "passes with", bad)
            m.check(words in done.stdout + done.stderr, test, "does not say", words)
        with open(os.path.join(TREE, path), "w", encoding="utf-8") as file:
            file.write(whole)


def main():
    _extending.copy_tree(TREE)
    if not _extending.apply_page(TREE):
        return
    done = call(
        "cmake",
        "-S",
        TREE,
        "-B",
        BUILD,
        "-DCMAKE_BUILD_TYPE=Release",
        "-DMOESIM_TESTS=ON",
        "-DMOESIM_WERROR=ON",
    )
    if not m.check(done.returncode == 0, "it does not configure:", done.stderr):
        return
    if build("moesim", *TESTS):
        test_rows()
        test_program()
        test_faults()
    m.check(not glob.glob(os.path.join(TREE, "src", "**", "*.rej"), recursive=True), "rejects")


main()
m.verdict()
