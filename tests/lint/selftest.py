"""layers.py can fail: small trees with one breach each are refused, and a clean one is not."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from layers import FOLDERS, WIDE, check_tree, drawing_script  # noqa: E402

WIDE.append("bench/table_*.sh")  # may be wide, for these trees
TABLE = "".join(f"| `{folder}/` | what is in it |\n" for folder in FOLDERS)

CLEAN = {
    **{f"src/{folder}/empty.h": "" for folder in FOLDERS},
    "ARCHITECTURE.md": TABLE,
    "docs/one.md": "[another](two.md), [a place](https://example.org/x.md), [here](#here)\n",
    "docs/two.md": "",
    "bench/table_one.sh": "x" * 200 + "\n",
    "src/base/status.h": "/* assert( and MPI_Init in a comment are fine */\nint moe_fail(void);\n",
    "src/base/status.c": '#include "base/status.h"\nint moe_fail(void) { return "MPI_Init"[0]; }\n',
    "src/world/comm.c": '#include <mpi.h>\n#include "base/status.h"\nvoid f(long *x) {\n'
    "    MPI_Allreduce(MPI_IN_PLACE, x, 1,\n        MPI_INT64_T, MPI_SUM, MPI_COMM_WORLD);\n}\n",
    "src/router/select.c": '#include "base/rng.h"\n#include "router/internal.h"\n',
    "tests/router/unit_a.c": "int main(void) { return check_verdict(); }\n",
}
BAD = {  # what is wrong -> (file, text or None = removed, words that the report must hold)
    "include of a later folder": (
        "src/router/router.c",
        '#include "model/layer.h"\n',
        "src/router/router.c:1: router/",
    ),
    "include of a later folder in a header": (
        "src/base/rng.h",
        '#include "world/comm.h"\n',
        "comes later",
    ),
    "include without a folder": ("src/router/router.c", '#include "select.h"\n', "does not begin"),
    "include of another folder's inside": (
        "src/balance/balance.c",
        '#include "router/internal.h"\n',
        "only router/ may see",
    ),
    "folder that is not in the table": ("src/nowhere/nowhere.h", "\n", "table"),
    "source outside the folders": ("src/nowhere.c", "\n", "table"),
    "folder within a folder": ("src/base/deep/nowhere.c", "\n", "table"),
    "MPI in a pure module": (
        "src/exchange/plan.c",
        "\nint x = MPI_SUCCESS;\n",
        "src/exchange/plan.c:2: MPI",
    ),
    "mpi.h in a pure module": ("src/exchange/plan.c", "#include <mpi.h>\n", "MPI"),
    "floating-point MPI_SUM": (
        "src/world/comm.c",
        "void f(double *x) {\n MPI_Allreduce(x, x, 1, MPI_DOUBLE,\n  MPI_SUM, c);\n}\n",
        "comm.c:3: MPI_SUM",
    ),
    "MPI_SUM of reals in a test": (
        "tests/world/mpi_b.c",
        "int check_verdict;void f(void) { MPI_Allreduce(x, x, 1, MOE_MPI_REAL, MPI_SUM, c); }\n",
        "MPI_SUM",
    ),
    "assert": ("src/base/rng.c", "void f(int x) { assert(x); }\n", "assert"),
    "exit on one rank": ("src/model/layer.c", "void f(int x) { exit(x); }\n", "alone"),
    "output from a pure module": ("src/router/select.c", 'void f(void) { printf("x"); }\n', "pure"),
    "path of one machine": ("src/base/rng.c", 'const char *p = "/home/me/x";\n', "one machine"),
    "path of one machine in a script": ("scripts/run", "cd /root/x\n", "one machine"),
    "long file": ("src/base/rng.c", "\n" * 701, "lines or more"),
    "wide line": ("src/base/rng.h", "/* " + "x" * 98 + " */\n", "src/base/rng.h:1: a line of more"),
    "wide line in Python": ("tests/base/help.py", "\n#" + "x" * 100 + "\n", "help.py:2: a line"),
    "wide line in a script": (
        "bench/measure",
        "#!/bin/sh\n#" + "x" * 100 + "\n",
        "measure:2: a line",
    ),
    "no ARCHITECTURE.md": ("ARCHITECTURE.md", None, "is missing"),
    "table in another order": (
        "ARCHITECTURE.md",
        "\n".join(reversed(TABLE.split("\n"))),
        "table of folders is not",
    ),
    "folder that the table lacks": (
        "ARCHITECTURE.md",
        TABLE.replace("| `tally/` | what is in it |\n", ""),
        "table of folders is not",
    ),
    "folder that is not there": ("src/tally/empty.h", None, "src/tally:1: stands in the table"),
    "drawing out of date": ("docs/architecture.svg", "<svg/>\n", "scripts/draw-architecture"),
    "link to nowhere": ("docs/one.md", "\n[x](three.md)\n", "docs/one.md:2: leads to three.md"),
    "test without a verdict": (
        "tests/base/unit_b.c",
        "int main(void) { return 0; }\n",
        "cannot fail",
    ),
}


def tree_of(files, folder):
    """Writes the files, and the drawing that belongs to them unless it is among them."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    drawn = folder / "docs" / "architecture.svg"
    if "ARCHITECTURE.md" in files and not drawn.exists():
        drawn.write_text(drawing_script().drawing(folder), encoding="utf-8")


def breaches_of(files):
    with tempfile.TemporaryDirectory() as folder:
        tree_of({name: text for name, text in files.items() if text is not None}, Path(folder))
        return check_tree(Path(folder))[0]


def main():
    failures = 0
    if found := breaches_of(CLEAN):
        print("a clean tree is refused:", *found, sep="\n  ")
        failures += 1
    if not breaches_of({}):
        print("an empty tree passes")
        failures += 1
    for what, (name, text, words) in BAD.items():
        found = breaches_of({**CLEAN, name: text})
        if len(found) != 1 or words not in found[0]:
            print(f"{what}: expected one breach with '{words}', got {found}")
            failures += 1
    print(f"{len(BAD) + 2} trees, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
