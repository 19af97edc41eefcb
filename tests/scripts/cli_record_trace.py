"""ctest: timeout=60
scripts/record-trace on stand-ins for models, so that neither torch nor transformers is needed: what
routers compute, and what each model type of the table becomes in the configuration."""

import array
import os
import random
import subprocess
import sys
import types

import _moesim as m

sys.path.insert(0, os.path.join(m.SOURCE, "scripts"))
sys.dont_write_bytecode = True
from trace_lib import models, record  # noqa: E402
from trace_lib.guard import Refused  # noqa: E402

LAYERS, N = 2, 16
drawn = random.Random(7)


class Matrix:
    """As much of a tensor as the recorder asks for."""

    def __init__(self, rows):
        self.rows, self.shape = rows, (len(rows), len(rows[0]))

    def reshape(self, *_):
        return self

    def float(self):
        return self

    detach = cpu = numpy = float

    def tolist(self):
        return self.rows

    @property
    def T(self):  # noqa: N802
        return Matrix([list(column) for column in zip(*self.rows)])

    def __matmul__(self, other):
        columns = list(zip(*other.rows))
        return Matrix([[sum(a * b for a, b in zip(row, c)) for c in columns] for row in self.rows])

    def __add__(self, other):
        return Matrix([[a + b for a, b in zip(row, other.rows[0])] for row in self.rows])

    def astype(self, _):
        return self

    def tobytes(self):
        return array.array("f", [x for row in self.rows for x in row]).tobytes()


class Linear:
    """A linear map, or a router that has a weight."""

    def __init__(self, rows, **more):
        self.weight, self.hooks = Matrix(rows), []
        self.__dict__.update(more)

    def register_forward_hook(self, hook):
        self.hooks.append(hook)
        return types.SimpleNamespace(remove=lambda: self.hooks.remove(hook))


def gates(**more):
    """Routers with known weights."""
    weights = [
        [[drawn.randrange(-4, 5) for _ in range(2)] for _ in range(N)] for _ in range(LAYERS)
    ]
    return [
        Linear(rows, **{name: value[i] for name, value in more.items()})
        for i, rows in enumerate(weights)
    ]


def model_of(kind, modules, **config):
    config = {"num_experts": N, "num_experts_per_tok": 2, "model_type": kind, **config}
    config = types.SimpleNamespace(**config)
    return types.SimpleNamespace(config=config, named_modules=lambda: modules)


def recorded(folder, model, routers, by_hand=None):
    """Runs the recorder over ten tokens; returns (logits as expected, files, notes, INI text)."""
    ids = list(range(10))

    def run(sequence):
        for gate in routers:
            for hook in gate.hooks:
                hook(gate, (Matrix([[token, 1] for token in sequence]),), None)

    result = record.record(model, ids, 4, run, by_hand)
    os.makedirs(folder)
    files, notes = record.write(folder, model, result, len(ids), 4, "A stand-in.", by_hand)
    expected = [row[0] * t + row[1] for gate in routers for t in ids for row in gate.weight.rows]
    with open(f"{folder}/logits.ini", encoding="utf-8") as file:
        return expected, files, notes, file.read()


def refused(what, sentence, work):
    try:
        work()
        m.check(False, f"{what} is not refused")
    except Refused as error:
        m.check(sentence in str(error) and "\n" not in str(error), f"{what}: {error}")


def test_recorder():
    """A model of two routers with known weights; its other linear maps are not routers."""
    routers = gates()
    modules = [("layers.0.mlp.gate", routers[0]), ("layers.1.mlp.gate", routers[1])]
    modules += [("layers.0.mlp.shared_expert_gate", Linear([[1, 1]]))]
    modules += [("layers.0.mlp.experts.0.gate_proj", Linear([[0, 0]] * N))]
    limit = {"topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3}
    model = model_of("deepseek_v2", modules, routed_scaling_factor=16.0, **limit)
    expected, files, notes, text = recorded("recorded", model, routers)
    got = m.load("recorded/logits.npy")
    m.check(got.shape == (LAYERS, 10, N) and list(got.data) == expected, "recorded logits differ")
    m.check(files == ["logits.npy", "logits.ini"], files)
    m.check(not routers[0].hooks, "the hooks stay")
    for line in ("top_k = 2", "norm_topk_prob = no", "group_limit = max", "num_groups = 8"):
        m.check(f"{line}\n" in text, "logits.ini lacks", line)
    for line in ("topk_group = 3", "sequence_length = 4", "routed_scaling_factor = 16.0"):
        m.check(f"{line}\n" in text, "logits.ini lacks", line)
    m.check("DeepseekV2Moe" in notes[0] and "group_limit = max" in notes[0], notes)
    run = m.moesim(
        2, "recorded/logits.ini", "--out", "rec", "--quiet", "--set", "model.hidden_size=8"
    )
    m.check(run.code == 0, run.err)


# model type, fields of its configuration -> score function, normalised, other keys
V3 = {"n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5}
V3_KEYS = {
    "group_limit": "top2_sum",
    "num_groups": 8,
    "topk_group": 4,
    "routed_scaling_factor": 2.5,
}
TYPES = (
    ("mixtral", {}, "softmax", "yes", {}),
    ("minimax", {"norm_topk_prob": False}, "softmax", "yes", {}),
    ("qwen2_moe", {}, "softmax", "no", {}),
    ("qwen3_moe", {"norm_topk_prob": True}, "softmax", "yes", {}),
    ("qwen3_next", {}, "softmax", "yes", {}),
    ("qwen3_vl_moe_text", {}, "softmax", "yes", {}),
    ("olmoe", {"norm_topk_prob": False, "n_group": 8, "topk_group": 3}, "softmax", "no", {}),
    ("flex_olmo", {}, "softmax", "no", {}),
    ("deepseek_v2", {"norm_topk_prob": True, "n_group": 8, "topk_group": 3}, "softmax", "no", {}),
    ("deepseek_v3", V3, "sigmoid", "yes", V3_KEYS),
    ("dots1", V3, "sigmoid", "no", V3_KEYS),
    ("glm4_moe", {"n_group": 1, "topk_group": 1}, "sigmoid", "yes", {}),
    ("lfm2_moe", {"routed_scaling_factor": 1.0}, "sigmoid", "yes", {}),
    ("llama4_text", {"norm_topk_prob": True}, "sigmoid", "no", {}),
    ("minimax_m2", {"scoring_func": "softmax"}, "sigmoid", "yes", {}),
    ("gpt_oss", {}, "softmax_topk", "no", {}),
    ("granitemoe", {}, "softmax_topk", "no", {}),
    ("ernie4_5_moe", {"num_experts_per_tok": None, "moe_k": 2}, "softmax", "yes", {}),
    ("hunyuan_v1_moe", {"num_experts_per_tok": None, "moe_topk": [2, 2]}, "softmax", "yes", {}),
    ("jamba", {}, "softmax", "no", {}),
    ("afmoe", {"route_scale": 2.5}, "sigmoid", "yes", {"routed_scaling_factor": 2.5}),
    ("aria_text", {"num_experts_per_tok": None, "moe_topk": 2}, "softmax_topk", "no", {}),
    (
        "dbrx",
        {
            "num_experts": None,
            "num_experts_per_tok": None,
            "ffn_config": types.SimpleNamespace(
                moe_num_experts=N, moe_top_k=2, moe_normalize_expert_weights=1.0, model_type=""
            ),
        },
        "softmax",
        "yes",
        {},
    ),
    ("exaone_moe", V3, "sigmoid", "yes", V3_KEYS),
    ("glm4_moe_lite", {**V3, "norm_topk_prob": True}, "sigmoid", "yes", V3_KEYS),
    ("glm4v_moe_text", V3, "sigmoid", "yes", V3_KEYS),
    ("glm_moe_dsa", {"n_group": 1, "topk_group": 1}, "sigmoid", "yes", {}),
    ("granitemoehybrid", {}, "softmax_topk", "no", {}),
    ("granitemoeshared", {"norm_topk_prob": True}, "softmax_topk", "no", {}),
    ("jetmoe", {}, "softmax_topk", "no", {}),
    ("kimi_k2", {**V3, "norm_topk_prob": False}, "sigmoid", "no", V3_KEYS),
    ("nemotron_h", V3, "sigmoid", "yes", V3_KEYS),
    ("qwen3_5_moe_text", {"norm_topk_prob": False}, "softmax", "yes", {}),
    ("qwen3_omni_moe_text", {"norm_topk_prob": True}, "softmax", "yes", {}),
)


def row_of(kind, router):
    """The row of docs/traces.md."""
    said = f"as configured ({'yes' if router.otherwise else 'no'})"
    normalised = said if router.normalised == models.SAID else router.normalised
    groups = router.groups or "none"
    if router.groups_if:
        groups += f" if {router.groups_if[0]} is {router.groups_if[1]}"
    cells = [kind, router.score, normalised, "yes" if router.scaled else "no", groups]
    cells += [router.bias or "none", ", ".join(router.modules), router.source]
    return "| " + " | ".join(cells) + " |"


def test_table():
    """Every row of the table, as the classes of transformers compute it."""
    m.check({kind for kind, *_ in TYPES} == set(models.ROUTERS), "a row of the table has no test")
    with open(os.path.join(m.SOURCE, "docs", "traces.md"), encoding="utf-8") as file:
        page = file.read()
    for kind, config, score, normalised, keys in TYPES:
        got = models.settings_of(models.text_config(model_of(kind, [], **config)))
        wanted = {"score_func": score, "norm_topk_prob": normalised, "top_k": 2, **keys}
        got = {key.split(".")[1]: value for key, value in got.items()}
        if keys == {}:
            m.check(got.pop("routed_scaling_factor", 1) == 1, f"{kind} is scaled")
        m.check(got == wanted, f"{kind}: {got}, expected {wanted}")
        row = row_of(kind, models.ROUTERS[kind])
        m.check(row in page, f"docs/traces.md has no row {row}")


def test_unknown():
    """Types that are not in the table, and what the user sets by hand."""
    for kind in ("phimoe", "longcat_flash", "something", ""):
        work = lambda: models.settings_of(model_of(kind, []).config)  # noqa: E731
        refused(f"type {kind}", "--set router.score_func=softmax|softmax_topk|sigmoid", work)
    by_hand = dict(
        map(models.parse_setting, ["router.score_func=sigmoid", "router.norm_topk_prob=yes"])
    )
    got = models.settings_of(model_of("something", []).config, by_hand)
    m.check(got == {"router.top_k": 2, **by_hand}, got)
    got = models.settings_of(model_of("mixtral", []).config, {"router.norm_topk_prob": "no"})
    m.check(got["router.norm_topk_prob"] == "no", "what is set by hand does not go before")
    for text in ("model.num_experts=3", "router.score_func=tanh", "router.top_k=x", "router.top_k"):
        refused(text, "--set", lambda text=text: models.parse_setting(text))
    for config in ({"num_experts_per_tok": [2, 3]}, {"num_experts_per_tok": None}):
        work = lambda config=config: models.settings_of(
            model_of("mixtral", [], **config).config
        )  # noqa: E731
        refused(f"{config}", "expected is one whole number", work)
    wrong = {"n_group": 4, "topk_group": 9}
    refused(
        "groups",
        "n_group = 4",
        lambda: models.settings_of(model_of("glm4_moe", [], **wrong).config),
    )
    wrong = types.SimpleNamespace(moe_num_experts=N, moe_normalize_expert_weights=2)
    config = {"num_experts": None, "ffn_config": wrong}
    refused(
        "another norm",
        "moe_normalize_expert_weights = 2",
        lambda: models.settings_of(models.text_config(model_of("dbrx", [], **config))),
    )
    done = tool("some/model", "text.txt", "--out", "never")
    m.check(done.returncode == 2 and not os.path.exists("never"), f"status {done.returncode}")
    m.check(done.stderr.count("\n") == 1, done.stderr)
    done = tool("some/model", "text.txt", "--out", "never", "--set", "a=b")
    m.check(
        done.returncode == 2 and "--set a=b: allowed are router.score_func" in done.stderr,
        done.stderr,
    )


def tool(*words):
    with open("text.txt", "w", encoding="utf-8") as file:
        file.write("hello\n")
    script = os.path.join(m.SOURCE, "scripts", "record-trace")
    return subprocess.run(
        [sys.executable, script, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


def biases_in(place, routers):
    """(modules, biases) with the selection bias where a model type has it."""
    biases = [[round(drawn.uniform(-1, 1), 3) for _ in range(N)] for _ in routers]
    modules = []
    for i, gate in enumerate(routers):
        block = types.SimpleNamespace()
        if place == "router":
            gate.e_score_correction_bias = Matrix([biases[i]])
        elif place == "block":
            block.expert_bias = Matrix([biases[i]])
        elif place == "around":
            block.expert_bias = Matrix([biases[i]])
            modules += [(f"layers.{i}.mlp", block), (f"layers.{i}.mlp.router.gate", gate)]
            modules += [(f"layers.{i}.mlp.router", types.SimpleNamespace())]
            continue
        else:
            gate.moe_statics = types.SimpleNamespace(e_score_correction_bias=Matrix([biases[i]]))
        modules += [(f"layers.{i}.mlp", block), (f"layers.{i}.mlp.gate", gate)]
    return modules, biases


def check_choices(folder, biases, kind):
    """A run chooses in every layer with the bias of that layer: the best of score + bias."""
    run = m.moesim(1, f"{folder}/logits.ini", "--out", f"{folder}-run", "--quiet")
    if not m.check(run.code == 0, folder, run.err):
        return
    logits = m.load(f"{folder}/logits.npy").rows()
    chosen = m.load(f"{folder}-run/topk_idx.npy").rows()
    tokens = len(logits) // len(biases)
    for i, (row, ids) in enumerate(zip(logits, chosen)):
        bias = biases[i // tokens]
        scores = [1 / (1 + 2.718281828459045**-z) for z in row]
        if kind == "ernie4_5_moe":
            whole = sum(2.718281828459045**z for z in row)
            scores = [2.718281828459045**z / whole for z in row]
        scores = [s + b for s, b in zip(scores, bias)]
        best = sorted(range(N), key=lambda e: -scores[e])[:2]
        close = m.near(scores[best[1]], min(scores[e] for e in ids), 1e-5)
        m.check(set(ids) == set(best) or close, folder, i, ids, best)


def test_bias():
    """The selection bias of each layer, wherever the model has it: [layers, N], or [N] of one."""
    places = (
        ("deepseek_v3", "router"),
        ("lfm2_moe", "block"),
        ("ernie4_5_moe", "statics"),
        ("afmoe", "around"),
    )
    for kind, place in places:
        routers = gates()
        modules, biases = biases_in(place, routers)
        _, files, notes, text = recorded(f"bias_{kind}", model_of(kind, modules), routers)
        got = m.load(f"bias_{kind}/bias.npy")
        m.check(files[-1] == "bias.npy" and got.shape == (LAYERS, N), kind, files, got.shape)
        m.check(m.near(list(got.data), [b for layer in biases for b in layer], 1e-6), kind, "bias")
        m.check("\nbias_file = " in text, text)
        run = m.moesim(1, f"bias_{kind}/logits.ini", "--check")
        m.check(run.code == 0, f"{kind}: {run.err}")
        check_choices(f"bias_{kind}", biases, kind)
    routers = gates()[:1]
    modules, biases = biases_in("router", routers)
    _, _, _, text = recorded("bias_one", model_of("glm4_moe", modules), routers)
    got = m.load("bias_one/bias.npy")
    m.check(got.shape == (N,) and "\nbias_file = " in text, got.shape, text)
    check_choices("bias_one", biases, "glm4_moe")
    routers = gates()
    modules, _ = biases_in("router", routers)
    del routers[1].e_score_correction_bias
    model = model_of("glm4_moe", modules)
    refused("one bias of two", "1 of 2 routers", lambda: recorded("half", model, routers))


def test_places():
    """Where the router's weight is, by model type; a bias of the linear map is in the logits."""
    for kind, name in (
        ("gpt_oss", "mlp.router"),
        ("granitemoe", "block_sparse_moe.router.layer"),
        ("hunyuan_v1_moe", "mlp.gate.wg"),
        ("jetmoe", "mlp.router.layer"),
        ("dbrx", "ffn.router.layer"),
    ):
        routers = gates(bias=[Matrix([[i + e for e in range(N)]]) for i in range(LAYERS)])
        modules = [(f"layers.{i}.{name}", gate) for i, gate in enumerate(routers)]
        modules += [("layers.0.mlp.other.gate", Linear([[9, 9]] * N))]
        expected, *_ = recorded(f"place_{kind}", model_of(kind, modules), routers)
        expected = [x + i // (10 * N) + i % N for i, x in enumerate(expected)]
        got = m.load(f"place_{kind}/logits.npy")
        m.check(
            got.shape == (LAYERS, 10, N) and list(got.data) == expected, f"{kind}: logits differ"
        )
    refused(
        "no router", "no router was found", lambda: recorded("none", model_of("mixtral", []), [])
    )


for test in (test_recorder, test_table, test_unknown, test_bias, test_places):
    test()
m.verdict()
