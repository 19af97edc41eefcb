"""Folders and habits of the sources. Usage: layers.py FOLDER (the repository's root).

Prints every breach as file:line and ends with status 1 when there is one.
"""

import fnmatch
import re
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

# The folders of src/ in the order in which data flows. A file may include headers of its own folder
# and of the folders before it. ARCHITECTURE.md has the same table with a sentence on each.
FOLDERS = (
    "base config world placement data router balance capacity exchange experts attention measure"
    " model tally train generate predict output explain library run"
).split()
# What decides and computes only: no MPI, no files, no output. Rank and size are arguments.
PURE = {
    "placement",
    "router",
    "capacity/capacity",
    "capacity/cut",
    "capacity/radix",
    "exchange/plan",
    "balance/balance",
    "attention",
    "predict/memory",
    "predict/cost",
    "predict/prediction",
    "predict/published",
}

# What may speak MPI, and the files that may end the process.
SPEAKS_MPI = {"world/comm", "world/comm_file", "world/window", "world/topology", "run/main"}
MAY_EXIT = {"run/main", "base/status", "base/parent", "world/comm"}
INTEGER_SUMS = re.compile(
    r"\bMPI_(INT|LONG|INT64_T|UINT64_T|INT32_T|UNSIGNED_LONG|LONG_LONG|COUNT|OFFSET)\b"
)
MACHINE_PATH = re.compile(r"(?<![\w.$}/)*])/(work|home|root|Users|mnt|opt)/")
MAX_LINES = 700
MAX_WIDTH = 100
C_FILES = {".c", ".h", ".def"}
DOCUMENTED = {"docs", "configs", "bench", "tests", "scripts"}  # folders that may have documents

# Files that may have wider lines, as patterns: for a table whose rows are long sentences. Each such
# file is named in the output. None is needed at present.
WIDE = []


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
                f'{folder}/ includes "{name}", and {target}/ comes later in the order of folders',
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
            f"{shown}:{number}: assert() does nothing in Release:"
            " MOE_ASSERT in sources, CHECK in tests"
        )
    for match in re.finditer(r"\bMPI_SUM\b", code):
        start = max(code.rfind(c, 0, match.start()) for c in ";{}")
        ends = [end for end in (code.find(c, match.end()) for c in ";{}") if end >= 0]
        statement = code[start + 1 : min(ends, default=len(code))]
        if "MPI_Op" not in statement and not INTEGER_SUMS.search(statement):
            number = code.count("\n", 0, match.start()) + 1
            breaches.append(
                f"{shown}:{number}: MPI_SUM without an integer datatype:"
                " a floating-point sum depends on the number of ranks"
            )


def is_script(path):
    """Whether a file without an ending is a script of the shell or of Python."""
    if path.suffix:
        return path.suffix in (".py", ".sh")
    with open(path, "rb") as file:
        return file.read(2) == b"#!"


def check_width(root, breaches):
    """Wide lines of C, Python and shell; returns remarks on the files that may have them."""
    remarks, needed = [], set()
    for folder in ("src", "tests", "bench"):
        for path in sorted(root.glob(f"{folder}/**/*")):
            golden = "golden" in path.parts or "corpus" in path.parts
            if golden or not path.is_file() or not (path.suffix in C_FILES or is_script(path)):
                continue
            shown = path.relative_to(root).as_posix()
            lines = path.read_text(encoding="utf-8").split("\n")
            wide = [number for number, line in enumerate(lines, 1) if len(line) > MAX_WIDTH]
            allowed = [pattern for pattern in WIDE if fnmatch.fnmatchcase(shown, pattern)]
            if wide and allowed:
                needed.update(allowed)
                remarks.append(
                    f"{shown}: may still be wide: {len(wide)} of more than {MAX_WIDTH} columns"
                )
            elif wide:
                breaches.extend(
                    f"{shown}:{number}: a line of more than {MAX_WIDTH} columns" for number in wide
                )
    remarks.extend(
        f"{pattern}: no wide lines any more, it can leave WIDE in tests/lint/layers.py"
        for pattern in WIDE
        if pattern not in needed
    )
    return remarks


def drawing_script():
    """scripts/draw-architecture as a module."""
    path = Path(__file__).resolve().parents[2] / "scripts" / "draw-architecture"
    sys.dont_write_bytecode = True
    loader = SourceFileLoader("draw_architecture", str(path))
    module = module_from_spec(spec_from_loader("draw_architecture", loader))
    loader.exec_module(module)
    return module


def check_architecture(root, breaches):
    """The table of folders, the tree and FOLDERS are the same, and the drawing is up to date."""
    text, draw = root / "ARCHITECTURE.md", drawing_script()
    if not text.is_file():
        breaches.append("ARCHITECTURE.md:1: is missing")
        return
    table = draw.folders_of(root)
    if table != FOLDERS:
        breaches.append(
            "ARCHITECTURE.md:1: its table of folders is not that of tests/lint/layers.py:"
            f" {' '.join(table)}"
        )
    for folder in FOLDERS:  # a folder too many: check_source says so of its files
        if not (root / "src" / folder).is_dir():
            breaches.append(f"src/{folder}:1: stands in the table of folders, but is not there")
    drawn = root / "docs" / "architecture.svg"
    if not drawn.is_file() or drawn.read_text(encoding="utf-8") != draw.drawing(root):
        breaches.append(
            "docs/architecture.svg:1: is not what scripts/draw-architecture draws: run it"
        )


def check_links(root, breaches):
    """Links between documents lead to files that exist."""
    for path in sorted([*root.glob("*.md"), *root.glob("*/**/*.md")]):
        shown = path.relative_to(root)
        if shown.parts[0] not in DOCUMENTED and len(shown.parts) > 1:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            for target in re.findall(r"\]\(([^)#:]+)\)", line):
                if not (path.parent / target).exists():
                    breaches.append(f"{shown}:{number}: leads to {target}, which is not there")


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
    check_architecture(root, breaches)
    check_links(root, breaches)
    remarks = check_width(root, breaches)
    if sources == 0:
        breaches.append(f"{root}: no sources found")
    return breaches, sources, remarks


def main():
    breaches, sources, remarks = check_tree(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
    print("\n".join(remarks + breaches + [f"{sources} sources, {len(breaches)} breaches"]))
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
