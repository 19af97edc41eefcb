"""What a comparison is worth: steps of two choices, paired, with the interval of their difference.

A choice is found on some of the judged steps and reported on the others where there are any, so
that it was not picked for the noise of the steps that speak for it.
"""
from dataclasses import dataclass

from sweep_lib import spread

WORTH = 0.01  # of a step: a smaller gain is not worth a change

# What `moesim --placements` compares and a run can use: placement.policy.
USABLE = ("block", "round_robin", "eplb", "eplb_global", "flashlb", "epic", "joint")

YES, NO, UNKNOWN = "Yes", "Not worth it", "Not enough evidence"


@dataclass(frozen=True)
class Choice:
    """Everything that is decided: devices that share the experts, replicas, group limit (0: as
    configured), mode, payload, placement.
    """

    group: int
    redundant: int = 0
    limit: int = 0
    mode: str = ""
    payload: str = ""
    policy: str = "block"


@dataclass
class Outcome:
    """What a choice costs: seconds of each judged step, and of one that is balanced perfectly;
    bytes to other devices and tokens of a step; experts to be copied, of the layers looked at.
    """

    choice: Choice
    steps: list
    balanced: float
    bytes: float
    tokens: int
    moved: float
    busiest: float
    decides: str

    @property
    def middle(self):
        """Judged steps up to this one choose, the others report; a single one does both."""
        return max(1, len(self.steps) // 3)

    @property
    def chosen_by(self):
        return _mean(self.steps[: self.middle])

    @property
    def held_out(self):
        return self.steps[self.middle :] or self.steps

    @property
    def seconds(self):
        return _mean(self.held_out)

    @property
    def bytes_per_token(self):
        return self.bytes / self.tokens

    @property
    def usable(self):
        return self.choice.policy in USABLE


def _mean(values):
    return sum(values) / len(values)


@dataclass(frozen=True)
class Verdict:
    """`gain` is the share of a step that is saved; low and high its interval, None of one step."""

    answer: str
    gain: float
    low: float = None
    high: float = None


def compare(before, after):
    """Whether `after` is worth leaving `before`."""
    pairs = list(zip(before.held_out, after.held_out))
    gain = 1 - after.seconds / before.seconds
    found = spread.paired(
        dict(enumerate(a / before.seconds for a, _ in pairs)),
        dict(enumerate(b / before.seconds for _, b in pairs)),
    )
    if found.noise is None:
        return Verdict(NO if gain < WORTH else YES, gain)
    low, high = -found.high, -found.low
    if high < WORTH or (gain < WORTH and low <= 0 and high < 5 * WORTH):
        return Verdict(NO, gain, low, high)
    if low > 0:
        return Verdict(YES if gain >= WORTH else NO, gain, low, high)
    return Verdict(UNKNOWN, gain, low, high)


def best(outcomes):
    """The fastest one that a run can use, on the steps that choose."""
    return min((one for one in outcomes if one.usable), key=lambda one: one.chosen_by)


def front(outcomes):
    """Those than which none is both faster and sends less, from the fastest on."""
    found = []
    for one in sorted(outcomes, key=lambda one: (one.seconds, one.bytes_per_token)):
        if not found or one.bytes_per_token < found[-1].bytes_per_token * (1 - 1e-9):
            found.append(one)
    return found
