"""Findings that are known and will be repaired. A repaired one goes from here.

A row: where it is written down, the reason, and a predicate of the case, the key table, the kind of
the finding and its text. A row that never occurs in a run of many configurations is reported.
"""


class Known:
    def __init__(self, where, reason, predicate):
        self.where, self.reason, self.predicate = where, reason, predicate


def own_files_refused(case, table, kind, text):
    later = kind.startswith(("config.ini again", "--check of its own echo", "resume"))
    rules = ("of a sequence the later tokens go", "a recorded routing is taken as it is")
    return later and "status 0 and 2" in kind and any(rule in text for rule in rules)


def trains_on_a_recording(case, table, kind, text):
    return case.trains() and case.get("data.source", table) in ("logits", "routing")


def z_loss_of_recorded_scores(case, table, kind, text):
    recorded = case.get("data.source", table) == "routing" and "data.scores" in case.settings
    return recorded and "self-check finite" in kind


def groups_straddle_devices(case, table, kind, text):
    groups = case.number("router.num_groups", table) or case.devices()
    aligned = groups % case.devices() == 0 or case.devices() % groups == 0
    limited = case.get("router.group_limit", table) != "none"
    return limited and not aligned and "self-check ceilings" in kind


def negative_scaling(case, table, kind, text):
    factor = float(case.get("router.routed_scaling_factor", table))
    return factor < 0 and "self-check weight_sums" in kind


KNOWN = [
    Known(
        "issue 11, item 1",
        "a run's own configuration is refused where a default or a preset fills a key",
        own_files_refused,
    ),
    Known(
        "issue 11, item 2",
        "training on recorded data crashes or trains on constants instead of being refused",
        trains_on_a_recording,
    ),
    Known(
        "issue 11, item 3",
        "the self-check finite fails with a z-loss beside recorded scores",
        z_loss_of_recorded_scores,
    ),
    Known(
        "issue 11, item 3",
        "the self-check ceilings fails where groups and devices do not divide one another",
        groups_straddle_devices,
    ),
    Known(
        "issue 11, item 3",
        "the self-check weight_sums fails with a negative routed_scaling_factor",
        negative_scaling,
    ),
]


def known(case, table, finding):
    """The row that explains a finding, or None."""
    for row in KNOWN:
        if row.predicate(case, table, finding.kind, finding.text):
            return row
    return None
