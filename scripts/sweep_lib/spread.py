"""Figures of one combination over its seeds, and the difference of two combinations: the mean with
the standard deviation between seeds, and the difference paired by seed, because two runs of one
seed see the same tokens and start from the same weights, so that most of the noise cancels.

With n seeds, differences d_1 … d_n, mean d and standard deviation s (divisor n − 1), the interval
that holds the true difference in 95 of 100 repetitions is d ± t(n − 1) · s / √n, t being the 97.5 %
point of Student's distribution (Student, Biometrika 6, 1908). A difference whose interval holds 0
is inside the noise.
"""
import math
from dataclasses import dataclass

# 97.5 % points of Student's distribution for 1, 2, ... degrees of freedom; 1.96 beyond.
STUDENT = (
    (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
    + (2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)
    + (2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)
)


def mean(values):
    return math.fsum(values) / len(values)


def deviation(values):
    """Standard deviation with the divisor n − 1; None of fewer than two values."""
    if len(values) < 2:
        return None
    middle = mean(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1))


@dataclass(frozen=True)
class Difference:
    """`low` and `high` bound the interval; None, and `noise` None, where one seed tells nothing of
    the spread.
    """

    mean: float
    seeds: int
    low: float = None
    high: float = None

    @property
    def noise(self):
        return None if self.low is None else self.low <= 0 <= self.high


def paired(first, second):
    """Difference of second − first over the seeds that both have: {seed: value} each; None where
    they share no seed.
    """
    differences = [second[seed] - first[seed] for seed in first if seed in second]
    if not differences:
        return None
    count, middle, spread = len(differences), mean(differences), deviation(differences)
    if spread is None:
        return Difference(middle, count)
    half = STUDENT[count - 2] if count - 2 < len(STUDENT) else 1.96
    half *= spread / math.sqrt(count)
    return Difference(middle, count, middle - half, middle + half)
