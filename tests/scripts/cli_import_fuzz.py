"""ctest: timeout=180
scripts/import-trace on some hundred hostile inputs of every format: files that the program accepts,
or one sentence and exit status 2. A planted fault shows that the judge can find one."""

import _moesim as m
import _trace_fuzz as fuzz

statuses = fuzz.trial(range(60), ask_every=15)
for kind in fuzz.FORMATS:
    for status in (0, 2):
        m.check(statuses.get((kind, status)), f"no case of {kind} ends with {status}")

# The judge itself: a run that is made to fail in each of the ways that count.
words = fuzz.make(0, "csv")
for planted, message in (
    (fuzz.Outcome(1, "", "Traceback\n", 0, 0), "a traceback"),
    (fuzz.Outcome(2, "", "scripts/import-trace: a\nb\n", 0, 0), "two lines"),
    (fuzz.Outcome(2, "", "scripts/import-trace: KeyError\n", 0, 0), "a name of Python's"),
    (fuzz.Outcome(-11, "", "", 0, 0), "a crash"),
    (fuzz.Outcome(0, "", "", 1000, 0), "a hang"),
    (fuzz.Outcome(0, "", "", 0, 1 << 40), "much memory"),
):
    m.check(fuzz.fault_of(planted, "case/out", False), f"{message} is not found")
m.verdict()
