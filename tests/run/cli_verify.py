"""ctest: timeout=60
--verify: every line is ok, on any number of ranks. --dialects: every preset has a row or a reason;
the configuration's own row is that of a run, a preset's row that of a run of the preset; mixtral's
loss is K times the expert loss; known misreadings make the difference they should.
"""
from _moesim import QUICKSTART, check, config, moesim, near, run, sets, summary, verdict

K, COMMON, DROP, REACH, BYTES = 2, 3, 4, 5, 6  # columns of the choices, after the name
TOKENS = sets({"data.tokens_per_device": 40, "cluster.devices": 8, "data.sequence_length": 50})


def check_verify():
    for ranks in (1, 4):
        done = moesim(ranks, "--verify")
        lines = done.out.splitlines()
        check(done.code == 0, f"np {ranks}: status {done.code}: {done.err}")
        check(
            len(lines) >= 20 and "EPLB README, layer 1" in lines[-1],
            f"np {ranks}: {len(lines)} lines",
        )
        for line in lines:
            check(
                len(line) <= 80
                and line.endswith(", ok")
                and "expected" in line
                and "found" in line,
                f"np {ranks}: {line}",
            )
        check(
            "4.458600" in done.out and "2.995002" in done.out and "7392" in done.out,
            f"np {ranks}: a figure is missing",
        )


def tables(text):
    """{row: words} of the choices, of the losses and of the forms, and {row: reason}."""
    found, part = ({}, {}, {}, {}), None
    for line in text.splitlines():
        check(len(line) <= 80, f"wider than 80 columns: {line}")
        heads = [
            i
            for i, head in enumerate(("Choices", "Losses", "The form", "Not with"))
            if line.startswith(head)
        ]
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
    choices, losses, forms, _ = tables(text)
    for preset in (
        "deepseek_v2",
        "deepseek_v3",
        "mixtral",
        "qwen2_moe",
        "switch",
        "gshard",
        "mixlora_dynamic",
        "megatron",
        "tutel",
        "fastmoe_switch",
    ):
        check(preset in choices and preset in losses and preset in forms, f"{preset} is not listed")
    own, own_loss = choices["(configuration)"], losses["(configuration)"]
    check(own[COMMON] == "100.0%" and own[DROP] == "0.0%", "the configuration's own row:", own)
    check(
        float(own[REACH]) <= 3 < float(choices["group_limit=none"][REACH]),
        "devices per token:",
        own,
        choices["group_limit=none"],
    )
    check(
        choices["switch"][K] == "1"
        and choices["mixtral"][K] == "2"
        and choices["mixlora_dynamic"][K] == "p0.8",
        "K of switch, mixtral and top-p",
    )
    check(
        float(choices["mixlora_dynamic"][REACH]) > 6,
        "a probability of 0.8 takes many of 128 experts:",
        choices["mixlora_dynamic"],
    )
    check(
        float(choices["deepseek_v2"][DROP].rstrip("%")) > 0,
        "DeepSeek-V2 drops on skewed tokens:",
        choices["deepseek_v2"],
    )
    for preset, k in (("mixtral", 2), ("qwen2_moe", 8)):
        form, row = forms[preset], losses[preset]
        check(
            form[0] == "mixtral" and near(float(form[1]), k * float(row[1]), 1e-4),
            f"{preset}: its loss is not {k} x the expert loss:",
            form,
            row,
        )
        check(
            form[2] == row[2], f"{preset}: divided by the value at balance they are one:", form, row
        )
    check(
        forms["deepseek_v2"][3] == "0.003" and forms["switch"][0] == "switch",
        "the form and the alpha of a row",
    )
    mean, selections = losses["device_p=mean"], losses["comm_count=selections"]
    check(
        near(float(mean[3]) * 16, float(own_loss[3]), 1e-3),
        "P' as a mean of 16 experts:",
        mean,
        own_loss,
    )
    check(
        near(float(selections[5]), 2 * float(own_loss[3]), 1e-4),
        "f'' of selections is K/M = 2 times the device loss:",
        selections,
        own_loss,
    )
    check(
        losses["aux_selection=unlimited"][1] == losses["group_limit=none"][1],
        "the unlimited selection is that without a limit",
    )
    return own, own_loss


def check_against_runs(own, own_loss):
    done = moesim(4, QUICKSTART, *TOKENS, *sets({"run.steps": 1}), "--out", "own", "--quiet")
    check(done.code == 0, f"run: status {done.code}: {done.err}")
    same_as_run("quickstart", own, own_loss, "own")
    base = {
        "router.preset": "deepseek_v2",
        "model.hidden_size": 32,
        "cluster.devices": 8,
        "data.tokens_per_device": 40,
    }
    folder = run("preset", 2, base)
    choices, losses, _, _ = tables(dialects(2, config("preset", base)))
    check(
        choices["deepseek_v2"] == choices["(configuration)"]
        and losses["deepseek_v2"] == losses["(configuration)"],
        "a configuration that is a preset has two different rows",
    )
    same_as_run("deepseek_v2", choices["deepseek_v2"], losses["deepseek_v2"], folder)


def same_as_run(name, choice, loss, folder):
    whole = summary(folder)
    layer = whole["layers"][0]
    check(
        abs(float(choice[BYTES]) - layer["volume"]["dispatch"]["logical_bytes"] / 2**20) < 1e-3,
        f"{name}: dispatch bytes",
        choice,
    )
    check(
        abs(float(choice[REACH]) - layer["mean_devices_per_token"]) < 1e-3,
        f"{name}: devices per token",
        choice,
    )
    check(
        abs(float(choice[DROP].rstrip("%")) - 100 * layer["dropped"] / layer["selections"])
        <= 0.051,
        f"{name}: dropped",
        choice,
    )
    for at, key in ((1, "expert"), (3, "device"), (5, "comm")):
        check(
            abs(float(loss[at]) - layer["loss_raw"][key]) < 1e-5,
            f"{name}: {key} loss",
            loss,
            layer["loss_raw"][key],
        )


def check_reasons():
    text = dialects(
        1,
        QUICKSTART,
        *sets(
            {
                "model.num_experts": 6,
                "cluster.devices": 6,
                "router.top_k": 3,
                "data.tokens_per_device": 20,
            }
        ),
    )
    choices, _, _, reasons = tables(text)
    check(
        "mixtral" in choices and "deepseek_moe_2b" in reasons and "deepseek_v3" in reasons,
        "reasons:",
        reasons,
    )
    for words in (
        ("--dialects",),
        ("--dialects", QUICKSTART, "--set", "data.source=routing", "--set", "data.path=x.npy"),
        ("--dialects", "--resume", "nowhere"),
    ):
        done = moesim(1, *words)
        check(
            done.code == 2 and "moesim: " in done.err and not done.out,
            f"{words}: status {done.code}: {done.err}",
        )


check_verify()
check_against_runs(*check_table())
check_reasons()
verdict()
