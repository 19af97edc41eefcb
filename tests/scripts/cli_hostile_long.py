"""ctest: timeout=1500 labels=long
Some hundred more hostile run folders than cli_hostile.py has.
"""
import _hostile
import _moesim as m

_hostile.check_seeds(range(1001, 1501))
m.verdict()
