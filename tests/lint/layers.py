"""Layers and habits of the sources. Usage: layers.py FOLDER (the repository's root). Prints every breach as file:line; exits 1 if there is one."""

import re
import sys
from pathlib import Path

# An include points to the same layer or down. A header that is not listed here is a breach: give it a layer (ARCHITECTURE.md says which are there).
LAYERS = [
    ("base", "status tensor scratch vector exact rng npy activation gemm config config_table presets text norm"),
    ("world", "comm topology host_limits"),
    ("decide", "placement routing stats data scores select router noisy weight_gradient balance capacity plan record memory explanation"),
    ("act", "recording input exchange expert ffn scopes checkpoint parameters optimizer task drop"),
    ("show", "metrics history screen textgraph matrices summary results report timeline explain_show explain_json derive"),
    ("simulate", "layer tally run train backward loaded restart specialize verify dialects explain"),
    ("program", "main"),
]
LAYER_OF = {name: i for i, (_, names) in enumerate(LAYERS) for name in names.split()}
DECIDE = 2

SPEAKS_MPI = {"comm", "exchange", "topology", "main"}
MAY_EXIT = {"main", "status", "comm"}
INTEGER_SUMS = re.compile(r"\bMPI_(INT|LONG|INT64_T|UINT64_T|INT32_T|UNSIGNED_LONG|LONG_LONG|COUNT|OFFSET)\b")
MACHINE_PATH = re.compile(r"(?<![\w.$}/)*])/(work|home|root|Users|mnt|opt)/")
MAX_LINES = 700


def without_comments(text):
    """The same text with comments blanked (line numbers stay); string literals are kept."""
    pattern = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|/\*.*?\*/|//[^\n]*', re.S)
    return pattern.sub(lambda m: m[0] if m[0][0] in "\"'" else re.sub(r"[^\n]", " ", m[0]), text)


def without_strings(code):
    return re.sub(r'"(?:\\.|[^"\\\n])*"', '""', code)


def module_of(path):
    """src/config_keys.c belongs to config: the longest listed name that the file's name starts with; None when there is none."""
    words = path.stem.split("_")
    for n in range(len(words), 0, -1):
        if "_".join(words[:n]) in LAYER_OF:
            return "_".join(words[:n])
    return None


def lines_matching(pattern, code):
    return [(number, line) for number, line in enumerate(code.split("\n"), 1) if re.search(pattern, line)]


def check_source(path, shown, breaches):
    raw = path.read_text(encoding="utf-8")
    code = without_comments(raw)
    bare = without_strings(code)

    def breach(line, sentence):
        breaches.append(f"{shown}:{line}: {sentence}")

    module = module_of(path)
    if module is None:
        breach(1, "has no layer: add it to the table in tests/lint/layers.py")
        return
    if path.suffix == ".h" and path.parent.name == "moesim" and path.stem not in LAYER_OF:
        breach(1, "has no layer: add it to the table in tests/lint/layers.py")
    layer = LAYER_OF[module]
    if said := re.search(r"\bLayer (\d)\b", raw[:2000]):
        if int(said[1]) != layer:
            breach(1, f"says that it is of layer {said[1]}, the table in tests/lint/layers.py says {layer}")
    for number, line in lines_matching(r'^\s*#\s*include\s*"', code):
        name = re.search(r'"([^"]+)"', line)[1]
        target = module_of(Path(name))
        if target is None:
            breach(number, f'includes "{name}", which has no layer: add it to the table in tests/lint/layers.py')
        elif LAYER_OF[target] > layer:
            breach(number, f'layer {layer} ({LAYERS[layer][0]}) includes "{name}" of layer {LAYER_OF[target]} ({LAYERS[LAYER_OF[target]][0]})')
    if module not in SPEAKS_MPI:
        for number, line in lines_matching(r"\bMPI_[A-Z]|<mpi\.h>", bare):
            breach(number, f"MPI belongs to {', '.join(sorted(SPEAKS_MPI))}: {line.strip()}")
    if module not in MAY_EXIT:
        for number, line in lines_matching(r"\b(exit|_exit|_Exit|abort|quick_exit)\s*\(", bare):
            breach(number, f"ends the process on one rank alone: {line.strip()}")
    if layer == DECIDE:
        for number, line in lines_matching(r"\b(printf|fprintf|puts|fopen|fwrite|fread)\s*\(", bare):
            breach(number, f"layer {DECIDE} ({LAYERS[DECIDE][0]}) is pure, without input or output: {line.strip()}")
    if raw.count("\n") >= MAX_LINES:
        breach(raw.count("\n"), f"has {MAX_LINES} lines or more: split it by noun")


def check_habits(path, shown, breaches):
    """What holds for every C file, tests included."""
    code = without_strings(without_comments(path.read_text(encoding="utf-8")))
    for number, line in lines_matching(r"\bassert\s*\(|<assert\.h>", code):
        breaches.append(f"{shown}:{number}: assert() does nothing in Release: MOE_ASSERT in sources, CHECK in tests")
    for match in re.finditer(r"\bMPI_SUM\b", code):
        start = max(code.rfind(c, 0, match.start()) for c in ";{}")
        ends = [end for end in (code.find(c, match.end()) for c in ";{}") if end >= 0]
        statement = code[start + 1 : min(ends, default=len(code))]
        if "MPI_Op" not in statement and not INTEGER_SUMS.search(statement):
            number = code.count("\n", 0, match.start()) + 1
            breaches.append(f"{shown}:{number}: MPI_SUM without an integer datatype: a floating-point sum depends on the number of ranks")


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
    for path in sorted([*root.glob("include/moesim/*.h"), *root.glob("src/*.[ch]")]):
        sources += 1
        check_source(path, path.relative_to(root), breaches)
    for folder in ("include", "src", "tests"):
        for path in sorted(root.glob(f"{folder}/**/*.[ch]")):
            check_habits(path, path.relative_to(root), breaches)
    for path in sorted([*root.glob("tests/unit/*.c"), *root.glob("tests/mpi/*.c")]):
        if "check_verdict" not in path.read_text(encoding="utf-8"):
            breaches.append(f"{path.relative_to(root)}:1: a test without check_verdict cannot fail")
    texts = {".c", ".h", ".sh", ".py", ".md", ".ini", ".txt", ".cmake", ".json", ""}
    for folder in ("include", "src", "tests", "configs", "scripts", "cmake", ".ci"):
        for path in sorted(root.glob(f"{folder}/**/*")):
            if path.is_file() and path.suffix in texts and "golden" not in path.parts and "corpus" not in path.parts and path.parent.name != "lint":
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
