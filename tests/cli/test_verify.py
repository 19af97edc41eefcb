"""ctest: timeout=60
--verify: every line is ok, on any number of ranks. --dialects: every preset has a row or a reason; the configuration's own row is that of a
run, a preset's row that of a run of the preset; mixtral's loss is K times the expert loss; known misreadings make the difference they should."""
from _moesim import QUICKSTART, check, config, moesim, near, run, sets, summary, verdict

TOKENS = sets({"data.tokens_per_device": 40, "cluster.devices": 8, "data.sequence_length": 50})


def check_verify():
    for ranks in (1, 4):
        done = moesim(ranks, "--verify")
        lines = done.out.splitlines()
        check(done.code == 0, f"np {ranks}: status {done.code}: {done.err}")
        check(len(lines) >= 20 and "not checked" in lines[-1], f"np {ranks}: {len(lines)} lines")
        for line in lines[:-1]:
            check(line.endswith(", ok") and "expected" in line and "found" in line, f"np {ranks}: {line}")
        check("4.458600" in done.out and "2.995002" in done.out and "7392" in done.out, f"np {ranks}: a figure is missing")


def tables(text):
    """{row: words} of the choices and of the losses, and {row: reason}."""
    found, part = ({}, {}, {}), None
    for line in text.splitlines():
        heads = [i for i, head in enumerate(("Choices", "Losses", "Not with")) if line.startswith(head)]
        part = heads[0] if heads else None if line.startswith("Where") else part
        words = line.split()
        if part is not None and not heads and line[:2] == "  " and line[2:3] not in (" ", ""):
            found[part][words[0]] = words[1:]
    return found


def dialects(ranks, *arguments):
    done = moesim(ranks, "--dialects", *arguments)
    check(done.code == 0, f"--dialects at np {ranks}: status {done.code}: {done.err}")
    return done.out



def check_table():
    text = dialects(4, QUICKSTART, *TOKENS)
    check(text == dialects(1, QUICKSTART, *TOKENS), "np 1 and 4 print other figures")
    choices, losses, _ = tables(text)
    for preset in ("deepseek_v2", "deepseek_v3", "mixtral", "qwen2_moe", "switch", "gshard", "mixlora_dynamic", "megatron", "tutel", "fastmoe_switch"):
        check(preset in choices and preset in losses, f"{preset} is not listed")
    own, own_loss = choices["(configuration)"], losses["(configuration)"]
    check(own[4] == "100.0%" and own[6] == "0", "the configuration's own row:", own)
    check(float(own[7]) <= 3 < float(choices["group_limit=none"][7]), "devices per token:", own, choices["group_limit=none"])
    check(int(choices["switch"][5]) == 320 and int(choices["mixtral"][5]) == 640, "selections of switch and mixtral")
    check(int(choices["deepseek_v2"][6]) > 0, "DeepSeek-V2 drops on skewed tokens:", choices["deepseek_v2"])
    for preset, k in (("mixtral", 2), ("qwen2_moe", 8)):
        row = losses[preset]
        check(row[7] == "mixtral" and near(float(row[8]), k * float(row[1]), 1e-5), f"{preset}: its loss is not {k} x the expert loss:", row)
        check(row[9] == row[2], f"{preset}: divided by the value at balance they are one:", row)
    mean, selections = losses["device_p=mean"], losses["comm_count=selections"]
    check(near(float(mean[3]) * 16, float(own_loss[3]), 1e-4), "P' as a mean of 16 experts:", mean, own_loss)
    check(near(float(selections[5]), 2 * float(own_loss[3]), 1e-5), "f'' of selections is K/M = 2 times the device loss:", selections, own_loss)
    check(losses["aux_selection=unlimited"][1] == losses["group_limit=none"][1], "the unlimited selection is that without a limit")
    return own, own_loss


def check_against_runs(own, own_loss):
    done = moesim(4, QUICKSTART, *TOKENS, *sets({"run.steps": 1}), "--out", "own", "--quiet")
    check(done.code == 0, f"run: status {done.code}: {done.err}")
    same_as_run("quickstart", own, own_loss, "own")
    base = {"router.preset": "deepseek_v2", "model.hidden_size": 32, "cluster.devices": 8, "data.tokens_per_device": 40}
    folder = run("preset", 2, base)
    choices, losses, _ = tables(dialects(2, config("preset", base)))
    check(choices["deepseek_v2"] == choices["(configuration)"] and losses["deepseek_v2"] == losses["(configuration)"],
          "a configuration that is a preset has two different rows")
    same_as_run("deepseek_v2", choices["deepseek_v2"], losses["deepseek_v2"], folder)


def same_as_run(name, choice, loss, folder):
    whole = summary(folder)
    layer = whole["layers"][0]
    check(int(choice[8]) == layer["volume"]["dispatch"]["logical_bytes"], f"{name}: dispatch bytes", choice)
    check(near(float(choice[7]), layer["mean_devices_per_token"], 1e-4), f"{name}: devices per token", choice)
    for at, key in ((1, "expert"), (3, "device"), (5, "comm")):
        check(abs(float(loss[at]) - layer["loss_raw"][key]) < 1e-6, f"{name}: {key} loss", loss, layer["loss_raw"][key])


def check_reasons():
    text = dialects(1, QUICKSTART, *sets({"model.num_experts": 6, "cluster.devices": 6, "router.top_k": 3, "data.tokens_per_device": 20}))
    choices, _, reasons = tables(text)
    check("mixtral" in choices and "deepseek_moe_2b" in reasons and "deepseek_v3" in reasons, "reasons:", reasons)
    for words in (("--dialects",), ("--dialects", QUICKSTART, "--set", "data.source=routing", "--set", "data.path=x.npy"),
                  ("--dialects", "--resume", "nowhere")):
        done = moesim(1, *words)
        check(done.code == 2 and "moesim: " in done.err and not done.out, f"{words}: status {done.code}: {done.err}")


check_verify()
check_against_runs(*check_table())
check_reasons()
verdict()
