"""Replays exchanges on one cluster: how many messages are under way, and how precisely."""
import os
import tempfile

from simulate_lib import simgrid

MOST_DEVICES = 2048  # a replay of more takes too long
# Up to so many devices: messages under way on one of them, and how precise a replay is. The more
# messages, the closer to all at once, and the longer it takes.
WINDOWS = ((64, 128, 1e-6), (256, 32, 2e-3), (MOST_DEVICES, 16, 5e-3))


def busiest(devices, gpus, pairs, intra, inter):
    """Seconds of the link with the most to carry of {(source, destination): bytes}, and the messages
    of the device with the most.
    """
    seconds, messages = [0.0] * (4 * devices), [0] * devices
    for (s, d), size in pairs.items():
        across = s // gpus != d // gpus
        time = size / (inter if across else intra)
        seconds[4 * s + across] += time
        seconds[4 * d + 2 + across] += time
        messages[s] += 1
        messages[d] += 1
    return max(seconds), max(messages)


class Cluster:
    """The cluster of a summary's configuration, described for SimGrid in the folder `scratch`."""

    def __init__(self, options, config, scratch):
        share = 1e9 * config["link_efficiency"]
        self.devices, self.gpus, self.scratch = options.devices, options.gpus, scratch
        self.rates = config["intra_gbps"] * share, config["inter_gbps"] * share
        self.window, self.precise = next(row[1:] for row in WINDOWS if self.devices <= row[0])
        platform = os.path.join(scratch, "platform.xml")
        simgrid.write_platform(platform, options.nodes, options.gpus, *self.rates)
        simgrid.write_hosts(os.path.join(scratch, "hosts"), self.devices)

    def busiest_seconds(self, pairs):
        return busiest(self.devices, self.gpus, pairs, *self.rates)[0]

    def replay(self, pairs):
        """Seconds of one exchange without latency."""
        if not pairs:
            return 0.0
        handle, path = tempfile.mkstemp(dir=self.scratch, prefix="actions")
        os.close(handle)
        simgrid.write_actions(path, self.devices, self.gpus, pairs, self.window)
        seconds, messages = busiest(self.devices, self.gpus, pairs, *self.rates)
        moment = simgrid.moment(seconds, messages, self.window, self.precise)
        return simgrid.replay(self.scratch, self.devices, path, moment)
