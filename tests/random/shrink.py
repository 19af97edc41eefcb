"""Makes a failing configuration smaller: drops settings and halves sizes while it still fails."""

import time

from comparisons import Bench, perform

# Every configuration has these; they become smaller, but are not left out.
SIZES = (
    "cluster.devices",
    "model.num_experts",
    "model.hidden_size",
    "model.moe_intermediate_size",
    "data.tokens_per_device",
)


def without_settings(case, names):
    smaller = case.copy()
    for name in names:
        del smaller.settings[name]
    return smaller


def with_setting(case, name, value):
    smaller = case.copy()
    smaller.settings[name] = value
    return smaller


def halved(case):
    """Cases with one size halved, or the devices together with the experts."""
    for name in (*SIZES, "run.steps", "model.num_layers", "router.top_k", "router.num_groups"):
        value = str(case.settings.get(name, ""))
        if value.isdigit() and int(value) > 1:
            for smaller in sorted({1, int(value) // 2, int(value) - 1}):
                yield with_setting(case, name, smaller)
    devices, experts = case.devices(), int(case.settings["model.num_experts"])
    for fewer in (1, 2, devices // 2):
        if 0 < fewer < devices and experts * fewer % devices == 0:
            smaller = with_setting(case, "cluster.devices", fewer)
            yield with_setting(smaller, "model.num_experts", experts * fewer // devices)
            yield smaller
    for name, value in case.extra.items():
        smaller = case.copy()
        smaller.extra[name] = value // 2 if isinstance(value, int) and value > 1 else value
        if value is True:
            smaller.extra[name] = False
        if smaller.extra != case.extra:
            yield smaller


class Shrinker:
    def __init__(self, case, table, folder, options, finding, name):
        self.case, self.table, self.folder, self.options = case, table, folder, options
        self.kind, self.name, self.finding = finding.kind, name, finding
        self.end = time.monotonic() + options.shrink

    def fails(self, case):
        """Whether the case fails in the same way; then it is the one to go on from."""
        if time.monotonic() > self.end:
            return False
        found = perform(Bench(case, self.table, self.folder, self.options), self.name)
        if found is None or found.kind != self.kind:
            return False
        self.case, self.finding = case, found
        return True

    def drop_settings(self):
        """Large parts first, then single settings; says whether anything went."""
        names = [n for n in self.case.settings if n not in SIZES]
        size, any_went = max(1, len(names) // 2), False
        while size >= 1:
            at = 0
            while at < len(names):
                part = [n for n in names[at : at + size] if n in self.case.settings]
                if part and self.fails(without_settings(self.case, part)):
                    any_went = True
                at += size
            names = [n for n in names if n in self.case.settings]
            size //= 2
        return any_went

    def halve_sizes(self):
        any_went, again = False, True
        while again:
            again = any(self.fails(smaller) for smaller in halved(self.case))
            any_went |= again
        return any_went

    def shrink(self):
        while self.drop_settings() | self.halve_sizes():
            pass
        return self.case, self.finding
