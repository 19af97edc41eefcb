"""The changes in docs/extending.md still fit the tree: each block applies as it stands.
cli_extending_long.py builds what comes of it.
"""
import os

import _extending
import _moesim as m

TREE = os.path.join(m.TEMPORARY, "copy")
_extending.copy_tree(TREE)
if _extending.apply_page(TREE):
    with open(os.path.join(TREE, "src", "router", "scores.c"), encoding="utf-8") as file:
        m.check("softplus_derivative" in file.read(), "the score function is not there")
m.verdict()
