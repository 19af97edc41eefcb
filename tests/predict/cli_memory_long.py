"""ctest: timeout=1500 labels=long
The estimate of memory beside the resident peak of many random configurations.
"""
from _memory import check_random
from _moesim import verdict

check_random(range(1000, 1150), 0.08)
verdict()
