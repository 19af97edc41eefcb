"""ctest: timeout=1500 labels=long
The estimate of memory beside the resident peak of many random configurations. The aim is that none
is outside the bounds; a sixth may be, most of them those whose load is uneven between ranks, which
the estimate does not foresee. The bound keeps this from becoming worse.
"""
from _memory import check_random
from _moesim import verdict

check_random(range(1000, 1150), 0.16)
verdict()
