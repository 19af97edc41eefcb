"""ctest: timeout=1500 labels=long
scripts/import-trace on thousands of hostile inputs; see cli_import_fuzz.py."""

import _moesim as m
import _trace_fuzz as fuzz

fuzz.trial(range(1000, 2000), ask_every=10)
m.verdict()
