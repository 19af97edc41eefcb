"""How the models of Hugging Face transformers route: from a published configuration to our keys.

Each row was read in the file that it names (src/transformers/models/..., as of 2025 and 2026). A
model type that is not here is refused rather than taken for a plain softmax."""

from dataclasses import dataclass

from trace_lib.guard import MOST_EXPERTS, Refused, few, is_whole, shown

COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_top_k", "moe_k")
BIASES = ("e_score_correction_bias", "expert_bias", "moe_statics.e_score_correction_bias")
MODULES = ("gate", "router", "wg", "router.layer", "router.classifier")
YES, NO, SAID = "yes", "no", "as the configuration says"
# Parts of a configuration that may say what its first level does not.
PARTS = ("text_config", "ffn_config")


@dataclass(frozen=True)
class Router:
    """One way to route. `normalised`: YES, NO, or as the field `normalised_by` of the configuration
    says, with `otherwise` where it says nothing. `modules`: how the names of the modules end that hold
    the router's weight. `bias`: where the selection bias is, from the module or its parent."""

    score: str
    normalised: str
    source: str
    modules: tuple = ("gate",)
    otherwise: bool = False
    normalised_by: str = "norm_topk_prob"
    scaled: bool = False  # by the field scaled_by
    scaled_by: str = "routed_scaling_factor"
    groups: str = ""  # the rule that keeps topk_group of n_group groups
    groups_if: tuple = ()  # a field of the configuration and its value that turn the groups on
    bias: str = ""
    remark: str = ""


V3 = {"scaled": True, "groups": "top2_sum", "bias": "e_score_correction_bias"}
ROUTERS = {
    "afmoe": Router(
        "sigmoid",
        YES,
        "afmoe/modular_afmoe.py, AfmoeTokenChoiceRouter",
        modules=("router.gate",),
        scaled=True,
        scaled_by="route_scale",
        bias="expert_bias",
        remark="scaled by route_scale",
    ),
    "aria_text": Router(
        "softmax_topk", NO, "aria/modular_aria.py, AriaExperts", modules=("mlp.router",)
    ),
    "dbrx": Router(
        "softmax",
        SAID,
        "dbrx/modular_dbrx.py, DbrxFFN",
        modules=("router.layer",),
        normalised_by="moe_normalize_expert_weights",
        remark="normalised where moe_normalize_expert_weights of its ffn_config is 1; another norm"
        " than the sum is refused",
    ),
    "deepseek_v2": Router(
        "softmax",
        NO,
        "deepseek_v2/modular_deepseek_v2.py, DeepseekV2Moe",
        scaled=True,
        groups="max",
        groups_if=("topk_method", "group_limited_greedy"),
        remark="norm_topk_prob is in the configuration, but the class does not look at it",
    ),
    "deepseek_v3": Router(
        "sigmoid", SAID, "deepseek_v3/modular_deepseek_v3.py, DeepseekV3MoE", otherwise=True, **V3
    ),
    "dots1": Router("sigmoid", SAID, "dots1/modular_dots1.py, Dots1MoE (DeepseekV3MoE)", **V3),
    "ernie4_5_moe": Router(
        "softmax",
        YES,
        "ernie4_5_moe/modular_ernie4_5_moe.py, Ernie4_5_MoeTopKRouter",
        bias="moe_statics.e_score_correction_bias",
        remark="the sum of the weights is at least moe_norm_min",
    ),
    "exaone_moe": Router(
        "sigmoid",
        SAID,
        "exaone_moe/modular_exaone_moe.py, ExaoneMoeTopkRouter (DeepseekV3TopkRouter)",
        otherwise=True,
        **V3,
    ),
    "flex_olmo": Router("softmax", SAID, "flex_olmo/modular_flex_olmo.py, FlexOlmoTopKRouter"),
    "glm4_moe": Router(
        "sigmoid", SAID, "glm4_moe/modular_glm4_moe.py, Glm4MoeTopkRouter", otherwise=True, **V3
    ),
    "glm4_moe_lite": Router(
        "sigmoid",
        SAID,
        "glm4_moe_lite/modular_glm4_moe_lite.py, Glm4MoeLiteTopkRouter (Glm4MoeTopkRouter)",
        otherwise=True,
        **V3,
    ),
    "glm4v_moe_text": Router(
        "sigmoid",
        SAID,
        "glm4v_moe/modular_glm4v_moe.py, Glm4vMoeTextTopkRouter (Glm4MoeTopkRouter)",
        otherwise=True,
        **V3,
    ),
    "glm_moe_dsa": Router(
        "sigmoid",
        SAID,
        "glm_moe_dsa/modeling_glm_moe_dsa.py, GlmMoeDsaTopkRouter",
        otherwise=True,
        **V3,
    ),
    "gpt_oss": Router(
        "softmax_topk",
        NO,
        "gpt_oss/modular_gpt_oss.py, GptOssTopKRouter",
        modules=("router",),
        remark="the router's linear map has a bias of its own, which the logits contain",
    ),
    "granitemoe": Router(
        "softmax_topk",
        NO,
        "jetmoe/modeling_jetmoe.py, JetMoeTopKGating (GraniteMoeTopKGating)",
        modules=("router.layer",),
    ),
    "granitemoehybrid": Router(
        "softmax_topk",
        NO,
        "granitemoehybrid/modular_granitemoehybrid.py, GraniteMoeHybridMoE (GraniteMoeSharedMoE)",
        modules=("router.layer",),
    ),
    "granitemoeshared": Router(
        "softmax_topk",
        NO,
        "granitemoeshared/modular_granitemoeshared.py, GraniteMoeSharedMoE (GraniteMoeMoE)",
        modules=("router.layer",),
    ),
    "hunyuan_v1_moe": Router(
        "softmax",
        YES,
        "hunyuan_v1_moe/modular_hunyuan_v1_moe.py, HunYuanMoEV1Moe",
        modules=("wg",),
        remark="early versions drop tokens at a capacity, which is not recorded",
    ),
    "jamba": Router(
        "softmax", NO, "jamba/modular_jamba.py, JambaSparseMoeBlock", modules=("router",)
    ),
    "jetmoe": Router(
        "softmax_topk",
        NO,
        "jetmoe/modeling_jetmoe.py, JetMoeTopKGating",
        modules=("mlp.router.layer",),
        remark="its attention has experts and a router of their own, which are not recorded",
    ),
    "kimi_k2": Router(
        "sigmoid",
        SAID,
        "deepseek_v3/modular_deepseek_v3.py, DeepseekV3MoE",
        otherwise=True,
        remark="the model says that it is built as deepseek_v3",
        **V3,
    ),
    "lfm2_moe": Router(
        "sigmoid",
        SAID,
        "lfm2_moe/modular_lfm2_moe.py, Lfm2MoeSparseMoeBlock",
        otherwise=True,
        scaled=True,
        bias="expert_bias",
    ),
    "llama4_text": Router(
        "sigmoid",
        NO,
        "llama4/modeling_llama4.py, Llama4Router",
        modules=("router",),
        remark="the weight multiplies what goes into the expert, not what comes out",
    ),
    "minimax": Router("softmax", YES, "minimax/modular_minimax.py, MiniMaxTopKRouter"),
    "minimax_m2": Router(
        "sigmoid",
        YES,
        "minimax_m2/modular_minimax_m2.py, MiniMaxM2TopKRouter",
        bias="e_score_correction_bias",
    ),
    "mixtral": Router("softmax", YES, "mixtral/modular_mixtral.py, MixtralTopKRouter"),
    "nemotron_h": Router(
        "sigmoid",
        SAID,
        "nemotron_h/modular_nemotron_h.py, NemotronHTopkRouter (DeepseekV3TopkRouter)",
        otherwise=True,
        **V3,
    ),
    "olmoe": Router("softmax", SAID, "olmoe/modular_olmoe.py, OlmoeSparseMoeBlock"),
    "qwen2_moe": Router("softmax", SAID, "qwen2_moe/modular_qwen2_moe.py, Qwen2MoeTopKRouter"),
    "qwen3_5_moe_text": Router(
        "softmax",
        YES,
        "qwen3_5_moe/modular_qwen3_5_moe.py, Qwen3_5MoeTopKRouter (Qwen3VLMoeTextTopKRouter)",
    ),
    "qwen3_moe": Router("softmax", SAID, "qwen3_moe/modular_qwen3_moe.py, Qwen3MoeTopKRouter"),
    "qwen3_next": Router(
        "softmax", SAID, "qwen3_next/modular_qwen3_next.py, Qwen3NextTopKRouter", otherwise=True
    ),
    "qwen3_omni_moe_text": Router(
        "softmax",
        SAID,
        "qwen3_omni_moe/modular_qwen3_omni_moe.py, Qwen3OmniMoeThinkerTextSparseMoeBlock"
        " (Qwen3MoeSparseMoeBlock)",
    ),
    "qwen3_vl_moe_text": Router(
        "softmax", YES, "qwen3_vl_moe/modular_qwen3_vl_moe.py, Qwen3VLMoeTextTopKRouter"
    ),
}
# Known, and not to be expressed in our keys.
IMPOSSIBLE = {
    "phimoe": "its second expert is chosen and weighed by sparsemixer, after the first is masked",
    "longcat_flash": "some of its experts are the identity, which costs nothing",
}
BY_HAND = {
    "router.score_func": ("softmax", "softmax_topk", "sigmoid", "sqrtsoftplus"),
    "router.norm_topk_prob": ("yes", "no"),
    "router.top_k": None,
    "router.routed_scaling_factor": None,
    "router.scale_normalized": ("yes", "no"),
    "router.norm_single": ("yes", "no"),
    "router.group_limit": ("none", "max", "top2_sum", "topk_sum", "quota"),
    "router.num_groups": None,
    "router.topk_group": None,
}
NEEDED = ("router.score_func", "router.norm_topk_prob")


def first_of(config, names, otherwise=None):
    """The first of these attributes that the configuration has."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if value is not None), otherwise)


def one_number(config, names, what):
    """A number of the configuration. Some give one for each layer: it must be the same one."""
    value = first_of(config, names)
    if isinstance(value, (list, tuple)) and value and all(number == value[0] for number in value):
        value = value[0]
    if not is_whole(value, 1, MOST_EXPERTS):
        raise Refused(
            f"the model's configuration says {shown(value, 60)} for {what} ({', '.join(names)}); "
            f"expected is one whole number from 1 to {MOST_EXPERTS} for all layers"
        )
    return value


class Part:
    """A part of a configuration. What it does not say is taken from the configuration around it."""

    def __init__(self, part, whole):
        self.part, self.whole = part, whole

    def __getattr__(self, name):
        value = getattr(self.part, name, None)
        return getattr(self.whole, name) if value in (None, "") else value


def text_config(model):
    """The configuration that names the experts: of models with several parts, that of the text."""
    config = model.config
    for name in PARTS:
        part = getattr(config, name, None)
        if first_of(config, COUNTS) is None and part is not None:
            return Part(part, config)
    return config


def parse_setting(text):
    """(key, value) of a --set KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not equals or key not in BY_HAND:
        raise Refused(
            f"--set {shown(text, 80)}: allowed are {', '.join(f'{k}=...' for k in BY_HAND)}"
        )
    allowed = BY_HAND[key]
    if allowed is not None and value not in allowed:
        raise Refused(f"--set {shown(text, 80)}: allowed for {key} are {', '.join(allowed)}")
    if allowed is None:
        try:
            number = float(value) if key == "router.routed_scaling_factor" else int(value)
        except ValueError:
            number = None
        if (
            number is None
            or not -1e6 <= number <= 1e6
            or (number < 1 and key != "router.routed_scaling_factor")
        ):
            raise Refused(f"--set {shown(text, 80)}: expected is a number, for a count from 1 on")
    return key, value


def router_of(config, by_hand):
    """The row of the table, or None where the keys are set by hand."""
    kind = getattr(config, "model_type", "")
    if kind in ROUTERS:
        return ROUTERS[kind]
    missing = [key for key in NEEDED if key not in by_hand]
    if kind in IMPOSSIBLE and missing:
        raise Refused(
            f"model_type {kind} cannot be expressed in the router's keys: {IMPOSSIBLE[kind]}; "
            f"set the nearest ones by hand: {wanted(missing)}"
        )
    if missing:
        raise Refused(
            f"how models of model_type {shown(kind, 60) or '(none)'} route is not known"
            f" (docs/traces.md lists those that are); say it by hand: {wanted(missing)}, and where"
            " the model has them router.routed_scaling_factor, router.group_limit,"
            " router.num_groups, router.topk_group"
        )
    return None


def wanted(keys):
    """The options that are missing, with their values."""
    return " ".join(f"--set {key}={'|'.join(BY_HAND[key])}" for key in keys)


def settings_of(config, by_hand=None):
    """The router of a published configuration in our keys; those set by hand go before."""
    by_hand = by_hand or {}
    row = router_of(config, by_hand)
    settings = {}
    if "router.top_k" not in by_hand:
        settings["router.top_k"] = one_number(config, CHOSEN, "the experts of a token")
    if row is not None:
        settings["router.score_func"] = row.score
        settings["router.norm_topk_prob"] = normalisation(config, row)
        if row.scaled:
            settings["router.routed_scaling_factor"] = scaling(config, row.scaled_by)
        settings.update(group_settings(config, row))
    settings.update(by_hand)
    return settings


def normalisation(config, row):
    """yes or no."""
    if row.normalised != SAID:
        return row.normalised
    said = getattr(config, row.normalised_by, None)
    if said not in (None, False, True):  # 0, 1, 0.0 and 1.0 are among these
        raise Refused(
            f"the model's configuration says {row.normalised_by} = {shown(said, 60)}; expected is"
            " true, false or 1: weights are divided by their sum or left alone"
        )
    return YES if (row.otherwise if said is None else said) else NO


def scaling(config, field):
    """The factor of the weights, 1 where there is none."""
    value = getattr(config, field, None)
    if value is None:
        return 1
    if type(value) not in (int, float) or not -1e6 <= value <= 1e6:
        raise Refused(
            f"the model's configuration says {field} = {shown(value, 60)}; expected is a number"
        )
    return value


def group_settings(config, row):
    """The group limit, where the configuration has one that limits."""
    if not row.groups or (
        row.groups_if and getattr(config, row.groups_if[0], None) != row.groups_if[1]
    ):
        return {}
    groups, kept = getattr(config, "n_group", None), getattr(config, "topk_group", None)
    if groups is None or kept is None:
        return {}
    if not (is_whole(groups, 1, MOST_EXPERTS) and is_whole(kept, 1, groups)):
        raise Refused(
            f"the model's configuration says n_group = {shown(groups, 40)} and topk_group ="
            f" {shown(kept, 40)}; expected are whole numbers, the second not above the first"
        )
    if kept == groups:
        return {}
    return {
        "router.group_limit": row.groups,
        "router.num_groups": groups,
        "router.topk_group": kept,
    }


def find_routers(model, num_experts, row=None):
    """(name, module) of each router in order: a linear map from the hidden size to the experts,
    in a module whose name ends as the table says."""
    endings = row.modules if row is not None else MODULES
    found = []
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        ends = any(name == ending or name.endswith("." + ending) for ending in endings)
        if (
            ends
            and weight is not None
            and len(weight.shape) == 2
            and weight.shape[0] == num_experts
        ):
            found.append((name, module))
    if not found:
        raise Refused(
            f"no router was found: no module named {few(endings)} has a weight of"
            f" {num_experts} rows"
        )
    return found


def attribute(thing, path):
    """thing.a.b of "a.b", or None."""
    for name in path.split("."):
        thing = getattr(thing, name, None)
    return thing


def find_biases(model, found, row=None):
    """The selection bias of each router, in the router's module or one of the two around it; none
    at all where the model has none."""
    modules = dict(model.named_modules())
    paths = BIASES if row is None else (row.bias,) if row.bias else ()
    biases = []
    for name, module in found:
        around = name.rpartition(".")[0]
        places = [
            attribute(thing, path)
            for thing in (module, modules.get(around), modules.get(around.rpartition(".")[0]))
            if thing is not None
            for path in paths
        ]
        biases.append(next((bias for bias in places if bias is not None), None))
    there = [bias for bias in biases if bias is not None]
    if there and len(there) < len(biases):
        raise Refused(
            f"{len(there)} of {len(biases)} routers have a selection bias; expected are all of them"
            " or none"
        )
    return there
