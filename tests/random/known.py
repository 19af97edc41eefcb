"""Findings that are known and will be repaired. A repaired one goes from here.

A row: where it is written down, the reason, and a predicate of the case, the key table, the kind of
the finding and its text. A row that never occurs in a run of many configurations is reported.
"""


class Known:
    def __init__(self, where, reason, predicate):
        self.where, self.reason, self.predicate = where, reason, predicate


KNOWN = []


def known(case, table, finding):
    """The row that explains a finding, or None."""
    for row in KNOWN:
        if row.predicate(case, table, finding.kind, finding.text):
            return row
    return None
