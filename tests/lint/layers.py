"""Folders and habits of the sources. Usage: layers.py FOLDER (the repository's root).

Prints every breach as file:line and exits with 1 when there is one.
"""

import re
import sys
from pathlib import Path

# The folders of src/ in the order in which data flows. A file may include headers of its own folder
# and of the folders
# before it. ARCHITECTURE.md has the same table with a sentence on each; this test compares the two.
FOLDERS = (
    "base config world placement data router balance capacity exchange experts measure model tally"
    " train predict output explain run"
).split()
# Folders whose sources decide and compute only: no MPI, no files, no output. Rank and size are
# arguments.
PURE = {
    "placement",
    "router",
    "capacity/capacity",
    "capacity/cut",
    "exchange/plan",
    "balance/balance",
    "predict/memory",
}

# Folders that may speak MPI, and the files that may end the process.
SPEAKS_MPI = {"world/comm", "world/topology", "exchange/exchange", "run/main"}
MAY_EXIT = {"run/main", "base/status", "world/comm"}
INTEGER_SUMS = re.compile(
    r"\bMPI_(INT|LONG|INT64_T|UINT64_T|INT32_T|UNSIGNED_LONG|LONG_LONG|COUNT|OFFSET)\b"
)
MACHINE_PATH = re.compile(r"(?<![\w.$}/)*])/(work|home|root|Users|mnt|opt)/")
MAX_LINES = 700


def without_comments(text):
    """The same text with comments blanked (line numbers stay); string literals are kept."""
    pattern = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|/\*.*?\*/|//[^\n]*', re.S)
    return pattern.sub(lambda m: m[0] if m[0][0] in "\"'" else re.sub(r"[^\n]", " ", m[0]), text)


def without_strings(code):
    return re.sub(r'"(?:\\.|[^"\\\n])*"', '""', code)


def lines_matching(pattern, code):
    return [
        (number, line)
        for number, line in enumerate(code.split("\n"), 1)
        if re.search(pattern, line)
    ]


def is_in(module, table):
    """Whether "folder/file" or its folder stands in the table."""
    return module in table or module.split("/")[0] in table


def check_includes(folder, code, breach):
    for number, line in lines_matching(r'^\s*#\s*include\s*"', code):
        name = re.search(r'"([^"]+)"', line)[1]
        target, _, file = name.rpartition("/")
        if target not in FOLDERS:
            breach(number, f'includes "{name}", which does not begin with a folder of src/')
        elif FOLDERS.index(target) > FOLDERS.index(folder):
            breach(
                number,
                (
                    f'{folder}/ includes "{name}", and {target}/ comes later in the order of the'
                    " folders"
                ),
            )
        elif target != folder and file.endswith("internal.h"):
            breach(number, f'includes "{name}", which only {target}/ may see')


def check_source(path, shown, breaches):
    raw = path.read_text(encoding="utf-8")
    code = without_comments(raw)
    bare = without_strings(code)

    def breach(line, sentence):
        breaches.append(f"{shown}:{line}: {sentence}")

    folder = path.parent.name
    module = f"{folder}/{path.stem}"
    if len(shown.parts) != 3 or folder not in FOLDERS:
        breach(1, "stands in a folder that the table in tests/lint/layers.py does not have")
        return
    check_includes(folder, code, breach)
    if module not in SPEAKS_MPI:
        for number, line in lines_matching(r"\bMPI_[A-Z]|<mpi\.h>", bare):
            breach(number, f"MPI belongs to {', '.join(sorted(SPEAKS_MPI))}: {line.strip()}")
    if module not in MAY_EXIT:
        for number, line in lines_matching(r"\b(exit|_exit|_Exit|abort|quick_exit)\s*\(", bare):
            breach(number, f"ends the process on one rank alone: {line.strip()}")
    if is_in(module, PURE):
        for number, line in lines_matching(
            r"\b(printf|fprintf|puts|fopen|fwrite|fread)\s*\(", bare
        ):
            breach(number, f"{module} is pure, without input or output: {line.strip()}")
    if raw.count("\n") >= MAX_LINES:
        breach(raw.count("\n"), f"has {MAX_LINES} lines or more: split it by noun")


def check_habits(path, shown, breaches):
    """What holds for every C file, tests included."""
    code = without_strings(without_comments(path.read_text(encoding="utf-8")))
    for number, line in lines_matching(r"\bassert\s*\(|<assert\.h>", code):
        breaches.append(
            f"{shown}:{number}: assert() does nothing in Release: MOE_ASSERT in sources, CHECK in"
            " tests"
        )
    for match in re.finditer(r"\bMPI_SUM\b", code):
        start = max(code.rfind(c, 0, match.start()) for c in ";{}")
        ends = [end for end in (code.find(c, match.end()) for c in ";{}") if end >= 0]
        statement = code[start + 1 : min(ends, default=len(code))]
        if "MPI_Op" not in statement and not INTEGER_SUMS.search(statement):
            number = code.count("\n", 0, match.start()) + 1
            breaches.append(
                f"{shown}:{number}: MPI_SUM without an integer datatype: a floating-point sum"
                " depends on the number of ranks"
            )


def check_text(path, shown, breaches):
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return
    for number, line in enumerate(text.split("\n"), 1):
        if MACHINE_PATH.search(line):
            breaches.append(f"{shown}:{number}: path of one machine: {line.strip()[:100]}")


def check_tree(root):
    breaches, sources = [], 0
    for path in sorted(root.glob("src/**/*.[ch]")):
        sources += 1
        check_source(path, path.relative_to(root), breaches)
    for folder in ("src", "tests", "bench"):
        for path in sorted(root.glob(f"{folder}/**/*.[ch]")):
            check_habits(path, path.relative_to(root), breaches)
    for path in sorted([*root.glob("tests/*/unit_*.c"), *root.glob("tests/*/mpi_*.c")]):
        if "check_verdict" not in path.read_text(encoding="utf-8"):
            breaches.append(f"{path.relative_to(root)}:1: a test without check_verdict cannot fail")
    texts = {".c", ".h", ".sh", ".py", ".md", ".ini", ".txt", ".cmake", ".json", ""}
    for folder in ("src", "tests", "bench", "configs", "scripts", "cmake", "docs", ".ci"):
        for path in sorted(root.glob(f"{folder}/**/*")):
            if (
                path.is_file()
                and path.suffix in texts
                and "golden" not in path.parts
                and "corpus" not in path.parts
                and path.parent.name != "lint"
            ):
                check_text(path, path.relative_to(root), breaches)
    for path in sorted([*root.glob("*.md"), *root.glob("*.txt"), *root.glob("*.json")]):
        check_text(path, path.relative_to(root), breaches)
    if sources == 0:
        breaches.append(f"{root}: no sources found")
    return breaches, sources


def main():
    breaches, sources = check_tree(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
    print("\n".join(breaches + [f"{sources} sources, {len(breaches)} breaches"]))
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
