"""ctest: timeout=200
Several hosts, as network namespaces (tests/support/hosts): the same results bit for bit as on one
host, hosts that are nodes, what is sent between them against the counters of the network, and hosts
that cannot be nodes. It starts itself again on the first host.
"""
import json
import os
import shutil
import subprocess
import sys

HOSTS = os.path.join(os.path.dirname(__file__), "..", "support", "hosts")
if "MOESIM_HOSTFILE" not in os.environ:
    os.execv(HOSTS, [HOSTS, "2", "--rate", "2gbit", sys.executable, __file__])

from _moesim import MOESIM, MPIRUN, check, config, environment, load, metrics, moesim, near
from _moesim import same_bytes, summary, verdict

HOSTFILE = os.environ["MOESIM_HOSTFILE"]
BASE = {
    "run.steps": 2,
    "model.hidden_size": 1024,
    "model.num_experts": 32,
    "model.num_shared_experts": 1,
    "model.moe_intermediate_size": 16,
    "router.top_k": 4,
    "router.group_limit": "max",
    "router.topk_group": 3,
    "balance.alpha_expert": 0.003,
    "balance.alpha_comm": 0.02,
    "cluster.devices": 8,
    "data.tokens_per_device": 128,
    "data.sequence_length": 64,
    "output.routing": "yes",
    "output.tensors": "yes",
}
TRAINED = {
    "run.mode": "train",
    "run.steps": 4,
    "model.num_layers": 2,
    "model.num_experts": 16,
    "model.hidden_size": 32,
    "model.moe_intermediate_size": 8,
    "router.top_k": 3,
    "balance.alpha_expert": 0.01,
    "cluster.devices": 8,
    "data.tokens_per_device": 32,
    "data.sequence_length": 32,
    "train.clip_norm": 0.5,
    "train.optimizer": "adamw",
}


def spread(ranks, *arguments, hostfile=HOSTFILE, options=()):
    """moesim on the hosts, as a user starts it."""
    line = [*MPIRUN, str(ranks), "--hostfile", hostfile, *options, MOESIM, *map(str, arguments)]
    return subprocess.run(
        line, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


def bytes_on_the_wire():
    """What this host has sent and received."""
    shown = subprocess.check_output(["ip", "-s", "-j", "link", "show", "eth0"])
    counters = json.loads(shown)[0]["stats64"]
    return counters["tx"]["bytes"] + counters["rx"]["bytes"]


def across_nodes(volume):
    return sum(volume[way]["by_level"]["across_nodes"]["bytes"] for way in ("dispatch", "combine"))


def settings_of(folder):
    """The lines of config.ini but for the first, which says how many devices a rank has."""
    with open(os.path.join(folder, "config.ini")) as file:
        return file.readlines()[1:]


def figures(folder):
    """All that is reported, except for where and how fast it ran."""
    whole = {k: v for k, v in summary(folder).items() if k not in ("time", "machine", "ranks")}
    return whole, [{k: v for k, v in line.items() if k != "time"} for line in metrics(folder)]


def differences(a, b):
    """The names of what differs at the top of two results."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [key for key in {**a, **b} if a.get(key) != b.get(key)]
    return "steps" if a != b else ""


def check_same_alone(spread_folder, ranks):
    """The configuration that a run on the hosts has written gives the same on this host alone.
    Returns the names of its arrays."""
    one, other = spread_folder, f"{spread_folder}-alone"
    os.mkdir(other + "-config")
    path = shutil.copy(f"{one}/config.ini", f"{other}-config/run.ini")
    alone = moesim(ranks, "--out", other, "--quiet", path)
    check(alone.code == 0, alone.err)
    for a, b in zip(figures(one), figures(other)):
        check(a == b, f"{one} and {other} differ:", differences(a, b))
    check(settings_of(one) == settings_of(other), f"{one} and {other}: other configurations")
    arrays = {name for name in os.listdir(one) if name.endswith(".npy")}
    check(arrays == {name for name in os.listdir(other) if name.endswith(".npy")}, "other arrays")
    for name in arrays:
        check(same_bytes(f"{one}/{name}", f"{other}/{name}"), f"{one} and {other}: {name} differs")
    return arrays


def check_modes():
    """Hosts are nodes where the configuration names none, and its config.ini says so: on one host
    it gives the same."""
    sent = {}
    for mode in ("selection", "token", "two_level"):
        path = config("run", {**BASE, "exchange.mode": mode})
        before = bytes_on_the_wire()
        done = spread(4, "--out", mode, "--quiet", path)
        moved = bytes_on_the_wire() - before
        if not check(done.returncode == 0, f"{mode} on two hosts: {done.stderr}"):
            continue
        whole = summary(mode)
        check(whole["config"]["cluster"]["devices_per_node"] == 4, f"{mode}: other nodes")
        hosts = [rank["host"] for rank in whole["machine"]["ranks"]]
        check(hosts == ["host0", "host0", "host1", "host1"], f"{mode}: ranks are on {hosts}")
        arrays = check_same_alone(mode, 1)
        check({"topk_idx.npy", "comm_matrix.npy"} <= arrays, f"{mode}: {arrays}")
        sent[mode] = across_nodes(whole["volume"])
        steps = BASE["run.steps"]
        check(
            1 <= moved / (sent[mode] * steps) < 1.15,
            f"{mode}: {moved} bytes between the hosts, {sent[mode]} across nodes in each step",
        )
    check(sent["two_level"] < sent["token"] < sent["selection"], f"across nodes: {sent}")
    same = moesim(2, "--out", "one-host", "--quiet", config("run", BASE))
    check(same.code == 0, same.err)
    check(summary("one-host")["config"]["cluster"]["devices_per_node"] == 8, "one host, one node")
    check(across_nodes(summary("one-host")["volume"]) == 0, "one host: nothing crosses nodes")


def check_levels():
    """Rows by level, counted again from the choices of the run in mode token."""
    rows = {"same_device": 0, "same_node": 0, "across_nodes": 0}
    tokens, experts = BASE["data.tokens_per_device"], BASE["model.num_experts"]
    for token, chosen in enumerate(load("token/topk_idx.npy").rows()):
        own = token // tokens
        for device in {expert * 8 // experts for expert in chosen}:
            level = "same_device" if device == own else "across_nodes"
            if device != own and device // 4 == own // 4:
                level = "same_node"
            rows[level] += 1
    by_level = summary("token")["volume"]["dispatch"]["by_level"]
    found = {level: by_level[level]["rows"] for level in rows}
    check(found == rows and min(rows.values()) > 0, f"rows by level {found}, counted {rows}")


def check_training():
    done = spread(4, "--out", "trained", "--quiet", config("run", TRAINED))
    check(done.returncode == 0, f"training on two hosts: {done.stderr}")
    check_same_alone("trained", 2)


def check_transports():
    """Shared memory inside of the hosts and MPI_Alltoallv between them: the same as alone, also
    where one node, and so the second hop of two, reaches over both hosts."""
    narrow = {"exchange.payload": "fp8", "exchange.combine_payload": "bf16"}
    for name, transport, sets in (
        ("shared-token", "shared", BASE),
        ("shared-two", "auto", {**BASE, "exchange.mode": "two_level"}),
        (
            "shared-parts",
            "shared",
            {**BASE, **narrow, "exchange.mode": "two_level", "exchange.node_sum": "no"},
        ),
        (
            "shared-one-node",
            "shared",
            {**BASE, "exchange.mode": "two_level", "cluster.devices_per_node": 8},
        ),
        ("shared-trained", "shared", {**TRAINED, "exchange.mode": "two_level"}),
        (
            "shared-trained-one-node",
            "auto",
            {**TRAINED, **narrow, "exchange.mode": "two_level", "cluster.devices_per_node": 8},
        ),
    ):
        path = config("run", {**sets, "exchange.transport": transport})
        done = spread(4, "--out", name, "--quiet", path)
        if check(done.returncode == 0, f"{name} on two hosts: {done.stderr}"):
            check_same_alone(name, 1)
            used = summary(name)["machine"]["transport"]
            check(
                used == {"inside_host": "shared", "between_hosts": "alltoallv"}, f"{name}: {used}"
            )
    one = [figures(name) for name in ("token", "shared-token")]
    for whole, _ in one:
        whole["config"].pop("name")
        whole["config"]["exchange"].pop("transport")
    check(one[0] == one[1], "shared-token and token differ:", differences(one[0][0], one[1][0]))


def hostfile(name, *lines):
    with open(name, "w") as file:
        file.write("\n".join(lines) + "\n")
    return name


def check_odd_hosts():
    """Hosts that are no nodes are refused, and are none of the business of a configuration that
    names its nodes, but for a warning."""
    uneven = hostfile("uneven.hosts", "host0 slots=3", "host1 slots=1")
    path = config("run", BASE)
    key = "default: cluster.devices_per_node = 0: each host would be a node, and "
    for options, file, sentence in (
        ((), uneven, key + "these hosts have different numbers of ranks: start as many on each, "),
        (("--map-by", "node"), HOSTFILE, key + "the ranks of a host do not follow each other: "),
    ):
        done = spread(4, path, "--out", "refused", hostfile=file, options=options)
        check(
            done.returncode == 2 and done.stderr.startswith("moesim: " + sentence),
            f"{options}: status {done.returncode}: {done.stderr}",
        )
        check(done.stderr.count("\n") == 1, f"more than a sentence: {done.stderr}")
        check(not os.path.exists("refused"), "a refused run has left a folder")
    per_node = ("--set", "cluster.devices_per_node=3")
    done = spread(4, path, *per_node)
    sentence = "moesim: --set: cluster.devices_per_node = 3: it has to divide cluster.devices = 8\n"
    check((done.returncode, done.stderr) == (2, sentence), f"three of eight: {done.stderr}")
    per_node = ("--set", "cluster.devices_per_node=4")
    done = spread(4, path, *per_node, "--out", "uneven", hostfile=uneven)
    check(done.returncode == 0, f"named nodes on uneven hosts: {done.stderr}")
    words = " ".join(done.stdout.split())
    warning = "cluster.devices_per_node = 4 puts devices of host0 and of host1 on one node"
    check(warning in words, f"no warning: {words[:2000]}")
    check_same_alone("uneven", 1)
    check_lone_rank(uneven)


def check_lone_rank(uneven):
    """A rank alone on its host announces its rows as the others do, which share memory."""
    for mode in ("token", "selection", "two_level"):
        name = f"lone-{mode}"
        nodes = {"cluster.devices_per_node": 4, "exchange.mode": mode}
        path = config("run", {**TRAINED, **nodes, "exchange.transport": "shared"})
        done = spread(4, "--out", name, "--quiet", path, hostfile=uneven)
        if check(done.returncode == 0, f"{name} on two hosts: {done.stderr}"):
            check_same_alone(name, 1)


check_modes()
check_levels()
check_training()
check_transports()
check_odd_hosts()
verdict()
