"""ctest: timeout=180
Hostile and damaged run folders: scripts/report, scripts/sweep and scripts/lesson say one sentence
or show what is there. A seed that fails can be given as an argument, to be looked at alone.
"""
import sys

import _hostile
import _moesim as m

_hostile.check_seeds([int(word) for word in sys.argv[1:]] or [*range(1, 39), 1016, 1207])
m.verdict()
