"""SimGrid's SMPI: the description of a cluster, the replay of messages on it, and what became of it.

A device has four links: to and from its node, and to and from other nodes. Between these nothing is
short. Latency is left out here: with many messages under way it passes once, while the links work.

What a replay costs is sharing the links anew whenever a message ends, which is work for every
message under way. Three things keep it affordable with a thousand devices:

 - Messages that end within a moment of each other end together (surf/precision), which bounds how
   often links are shared. See `moment`.
 - The link between the nodes is one that is shared and endless. SimGrid looks at every message on a
   link that is not shared (FATPIPE) for every message that it gives a rate.
 - The actions of the devices stand in the file by turns: what one device reads past, SimGrid keeps
   in memory until it is the turn of its device.
"""
import os
import re
import shutil
import subprocess

from command_line import Refused

PACKAGE = "libsimgrid-dev"
DONE = re.compile(r"Simulation time ([0-9.e+-]+)")
OPTIONS = (
    "--cfg=smpi/simulate-computation:no",
    "--cfg=smpi/host-speed:1Gf",
    "--cfg=network/model:CM02",
    "--cfg=network/TCP-gamma:0",
    "--cfg=network/crosstraffic:0",  # acknowledgements take no share of the way back
    "--cfg=smpi/send-is-detached-thresh:0",  # short messages too count as under way
    "--log=root.thresh:warning",
    "--log=smpi_replay.thresh:info",
)
ENDLESS = 1e18  # bytes a second of what is never short
SLOWER = 10**6  # than the cluster, since SimGrid prints whole microseconds
SHORTEST = 1e-9  # seconds that are told apart at least


class Failed(Exception):
    """What went wrong in a simulation, as a sentence."""


def program():
    """smpirun; Refused where it is not installed."""
    found = shutil.which("smpirun")
    if found is None:
        raise Refused(f"SimGrid is not installed: apt-get install {PACKAGE}")
    return found


def write_platform(path, nodes, gpus, intra, inter):
    """A cluster; rates in bytes a second of a device and direction."""
    endless = f'bandwidth="{ENDLESS:g}Bps" latency="0s"'
    lines = [
        '<?xml version="1.0"?>',
        '<!DOCTYPE platform SYSTEM "https://simgrid.org/simgrid.dtd">',
        '<platform version="4.1">',
        '<zone id="cluster" routing="Full">',
    ]
    for node in range(nodes):
        lines += _node(range(node * gpus, (node + 1) * gpus), node, intra, inter, endless)
    lines.append(f'<link id="core" {endless}/>')
    lines += [
        f'<zoneRoute src="node{a}" dst="node{b}" gw_src="router{a}" gw_dst="router{b}">'
        '<link_ctn id="core"/></zoneRoute>'
        for a in range(nodes)
        for b in range(a + 1, nodes)
    ]
    lines += ["</zone>", "</platform>", ""]
    with open(path, "w", encoding="ascii") as file:
        file.write("\n".join(lines))


def _node(devices, node, intra, inter, endless):
    yield f'<zone id="node{node}" routing="Full">'
    for d in devices:
        yield f'<host id="d{d}" speed="1Gf"/>'
    yield f'<router id="router{node}"/>'
    for d in devices:
        for name, rate in (("in", intra), ("out", intra), ("from", inter), ("to", inter)):
            yield f'<link id="{name}{d}" bandwidth="{rate / SLOWER:.12g}Bps" latency="0s"/>'
        yield f'<link id="own{d}" {endless}/>'
    for s in devices:
        for d in devices:
            links = f'<link_ctn id="out{s}"/><link_ctn id="in{d}"/>'
            links = links if s != d else f'<link_ctn id="own{s}"/>'
            yield f'<route src="d{s}" dst="d{d}" symmetrical="NO">{links}</route>'
        for ends, link in (
            (f'src="d{s}" dst="router{node}"', f"to{s}"),
            (f'src="router{node}" dst="d{s}"', f"from{s}"),
        ):
            yield f'<route {ends} symmetrical="NO"><link_ctn id="{link}"/></route>'
    yield "</zone>"


def write_hosts(path, devices):
    with open(path, "w", encoding="ascii") as file:
        file.writelines(f"d{d}\n" for d in range(devices))


# --- messages ---


def round_of(source, destination, devices, gpus):
    """When a message has its turn. In a round every device sends one message and receives one: to a
    node so many further on, and there to a place so many further on. The rounds inside a node are
    spread over those across nodes, so that both kinds of links have work all the time.
    """
    nodes, shift = devices // gpus, (destination - source) % gpus
    further = (destination // gpus - source // gpus) % nodes
    if further:
        return (further - 1) * gpus + shift
    return (shift - 0.5) / max(gpus - 1, 1) * max((nodes - 1) * gpus, 1)


def write_actions(path, devices, gpus, pairs, window):
    """Time-independent actions of one exchange in one file, from {(source, destination): bytes}.

    Messages go round by round, with `window` of each device under way. From 2 on devices cannot
    wait for each other in a circle: a message is posted once those of its two ends in earlier
    rounds, but for the last few, are done.
    """
    messages = _by_device(devices, gpus, pairs)
    with open(path, "w", encoding="ascii") as file:
        file.writelines(f"{device} init\n" for device in range(devices))
        for place in range(max(map(len, messages), default=0)):
            for device, mine in enumerate(messages):
                if place < len(mine):
                    file.write(_post(device, mine, place, window))
        file.writelines(f"{device} waitall\n" for device in range(devices) if messages[device])
        file.writelines(f"{device} finalize\n" for device in range(devices))


def _post(device, mine, place, window):
    """The lines that post a message, once the one `window` places before is done."""
    wait = ""
    if place >= window:
        _, before, other, _ = mine[place - window]
        ends = (device, other) if before == "isend" else (other, device)
        wait = f"{device} wait {ends[0]} {ends[1]} 0\n"
    _, verb, peer, size = mine[place]
    return f"{wait}{device} {verb} {peer} 0 {size} 6\n"


def moment(seconds, messages, window, share):
    """How long is a moment, in seconds: what a device gains by it with all its messages, `window` at
    a time, is about the given share of the `seconds` that they take together.
    """
    return share * seconds * window / max(messages, window)


def _by_device(devices, gpus, pairs):
    """For each device its messages in order: (round, isend or irecv, peer, bytes)."""
    found = [[] for _ in range(devices)]
    for (source, destination), size in pairs.items():
        turn = round_of(source, destination, devices, gpus)
        found[source].append((turn, "isend", destination, size))
        found[destination].append((turn, "irecv", source, size))
    for messages in found:
        messages.sort()
    return found


def replay(folder, devices, actions, precision=0):
    """Seconds of the actions of one file, on platform.xml and hosts of the folder, where `precision`
    seconds need not be told apart. SimGrid may end with status 0 after a deadlock or an abort: only
    the line with the time counts.
    """
    names = actions + ".list"
    with open(names, "w", encoding="utf-8") as file:
        file.write(actions + "\n")
    done = subprocess.run(
        [program(), "-np", str(devices), "-platform", os.path.join(folder, "platform.xml")]
        + ["-hostfile", os.path.join(folder, "hosts"), *OPTIONS]
        + [f"--cfg=surf/precision:{max(precision * SLOWER, SHORTEST):.3g}", "-replay", names],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        cwd=folder,
    )
    found = DONE.findall(done.stdout)
    if done.returncode or len(found) != 1:
        raise Failed(f"SimGrid ended without a time: {_reason(done.stdout)}")
    return float(found[0]) / SLOWER


def _reason(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line for line in lines if "CRITICAL" in line or "deadlock" in line.lower()]
    return (said or lines or ["it said nothing"])[0][:200]
