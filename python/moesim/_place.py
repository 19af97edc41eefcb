"""Balancers: which experts live on which device, by their load."""

import numbers
from dataclasses import dataclass

import numpy

from ._library import MoesimError, checked, dimensions, floats, library, plain


@dataclass(frozen=True)
class Placement:
    """expert_at [devices, slots of a device], served the same: tokens of each slot, replicas [N].
    With the loads of several layers each has one more dimension in front.
    """

    policy: str
    expert_at: numpy.ndarray
    served: numpy.ndarray
    replicas: numpy.ndarray

    def device_load(self):
        return self.served.sum(axis=-1)

    def max_over_mean(self):
        load = self.device_load()
        return load.max(axis=-1) / load.mean(axis=-1)


def _numbers(name, given):
    array = plain(name, given)
    if array.dtype.kind in "iu":
        array = array.astype(numpy.float64)
    return floats(name, array)


def _count(name, value):
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Integral)
        or not 1 <= value < 2**31
    ):
        raise MoesimError(f"{name} = {value!r}: a whole number from 1 on is needed")
    return int(value)


def place(load, devices, policy="eplb", *, nodes=1, groups=1, slots_per_device=None, pairs=None):
    """What a balancer makes of load [N], or [layers, N]. slots_per_device: N / devices unless it is
    given. pairs [N,N]: tokens that chose both experts, which policy = "joint" looks at.
    """
    load = dimensions("load", _numbers("load", load), (1, 2), "[experts] or [layers, experts]")
    experts, devices = load.shape[-1], _count("devices", devices)
    if slots_per_device is None:
        if experts % devices:
            raise MoesimError(f"{devices} devices do not divide {experts} experts")
        slots_per_device = experts // devices
    slots = _count("slots_per_device", slots_per_device)
    if pairs is not None:
        pairs = _numbers("pairs", pairs)
        if pairs.shape != (experts, experts):
            raise MoesimError(f"pairs has the shape {pairs.shape}, and there are {experts} experts")
    rows = load.reshape(-1, experts)
    expert_at = numpy.zeros((len(rows), devices, slots), numpy.int32)
    served = numpy.zeros((len(rows), devices, slots))
    for i, row in enumerate(rows):
        row = numpy.ascontiguousarray(row)
        checked(
            library().moesim_place,
            str(policy).encode(),
            experts,
            devices,
            _count("nodes", nodes),
            _count("groups", groups),
            slots,
            row.ctypes.data,
            pairs.ctypes.data if pairs is not None else None,
            expert_at[i].ctypes.data,
            served[i].ctypes.data,
        )
    replicas = numpy.stack([numpy.bincount(x.reshape(-1), minlength=experts) for x in expert_at])
    if load.ndim == 1:
        return Placement(policy, expert_at[0], served[0], replicas[0])
    return Placement(policy, expert_at, served, replicas)
