"""docs/extending.md taken literally: a copy of the tree, and its command applied there."""
import os
import re
import shutil
import subprocess

import _moesim as m

PAGE = os.path.join(m.SOURCE, "docs", "extending.md")
FOLDERS = ("src", "tests", "docs", "cmake", "scripts", "configs", "bench", "python")


def copy_tree(to):
    """What a clone has of the tree, without build folders."""
    os.makedirs(to)
    for name in os.listdir(m.SOURCE):
        path = os.path.join(m.SOURCE, name)
        if os.path.isfile(path):
            shutil.copy(path, to)
    for name in FOLDERS:
        shutil.copytree(
            os.path.join(m.SOURCE, name),
            os.path.join(to, name),
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )


def apply_page(tree):
    """Runs the command that the page gives, and says whether every block was taken as it stands."""
    with open(PAGE, encoding="utf-8") as file:
        page = file.read()
    command = re.search(r"(?m)^    (sed .*patch -p1)$", page).group(1)
    done = subprocess.run(
        command, shell=True, cwd=tree, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    m.check(done.returncode == 0, "the blocks do not apply:", done.stdout, done.stderr)
    m.check("fuzz" not in done.stdout, "a block stands in other lines by now:", done.stdout)
    m.check(page.count("```diff") > 10, "the page has hardly a block")
    return done.returncode == 0
