"""Helper of the tests on golden cases: the settings of moesim under which it does what the
reference code of a case does.
"""
import json
import os

from _moesim import GOLDEN

ROUTING = os.path.join(GOLDEN, "routing")
MEGATRON, HUGGING_FACE = "megatron", "hfaux"


def read(folder, file):
    with open(os.path.join(folder, file)) as text:
        return json.load(text)


# --- settings ---


def score_func(case):
    if case.get("sinkhorn") or case["score_func"] == "sigmoid":
        return "sigmoid"
    if case["score_func"] == "sqrtsoftplus":
        return "sqrtsoftplus"
    after = case.get("softmax_after_topk") or (
        case["family"] == MEGATRON and not case.get("use_pre_softmax")
    )
    return "softmax_topk" if after else "softmax"


def capacity(case):
    """Megatron and DeepSpeed 9, FastMoE 8, Tutel 10 pairs at T 200, E 60, K 2, factor 1.25: each
    its own rounding.
    """
    policy, family = case.get("drop_policy", "none"), case["family"]
    if policy == "none":
        return {}
    if policy == "position_per_sequence":
        return {
            "capacity.policy": "sequence",
            "capacity.expert_capacity": case["capacity"],
            "capacity.drop": "position",
        }
    rounding = {
        MEGATRON: "megatron",
        "deepspeed": "deepspeed",
        "tutel": "tutel",
        "fastmoe": "fastmoe" if case["top_k"] > 1 else "ceil",
    }[family]
    drop = {
        "probs": "scores" if family == "deepspeed" else "probs",
        "batch_prioritized_by_choice_rank": "batch_priority",
    }.get(policy, "position")
    of = {
        "capacity.policy": "expert",
        "capacity.capacity_factor": case["capacity_factor"],
        "capacity.rounding": rounding,
        "capacity.drop": drop,
        "capacity.min_capacity": case.get("min_capacity", 0),
        "capacity.pad_to_capacity": "yes" if case.get("pad_to_capacity") else "no",
        "capacity.first_choices": "yes" if policy.endswith("by_choice_rank") else "no",
    }
    if family == "deepspeed" and case["norm_topk_prob"]:
        of["capacity.renormalize"] = "yes"
    return of


def form(case):
    """The loss that alpha1 belongs to: its form, and the loss's name in the program."""
    family = case["family"]
    if family in (HUGGING_FACE, "mixlora") and case.get("routing_strategy") != "mixlora-switch":
        return "mixtral"
    if family in ("switch", "mixlora"):
        return "switch"
    topkgating = family == "deepspeed" and case["functions"][0].startswith("topkgating")
    return (
        "gshard" if family in ("tutel", "fastmoe", "deepspeed") and not topkgating else "deepseek"
    )


# These run by a preset, of which only sizes are changed, and what the reference of the case does
# otherwise: it sees one batch on one device.
PRESETS = {
    "ds2_v2_E160_K6_G8_M3": ("deepseek_v2", {"capacity.policy": "none"}),
    "ds2_E60_K6_G12_M12_batch": (
        "deepseek_v2_lite",
        {
            "balance.scope": "global",
            "balance.alpha_expert": 0.003,
            "balance.alpha_device": 0.05,
            "balance.alpha_comm": 0.02,
            "router.group_limit": "max",
            "router.topk_group": 12,
        },
    ),
    "ds3_E256_K8_G8_M4_bias": ("deepseek_v3", {}),
    "mixtral_E8_K2": ("mixtral", {"balance.alpha_expert": 0.01}),
    "qwen2_E60_K4": ("qwen2_moe", {"balance.alpha_expert": 0.01}),
    "olmoe_E16_K1_norm": ("olmoe", {"router.norm_topk_prob": "yes", "balance.z_loss": 0}),
    "switch_E16_cap2_tight": ("switch", {"capacity.expert_capacity": 2}),
    "mixlora_E6_K3_mask": ("mixlora", {}),
    "mixlora_switch_E16_cap4": ("mixlora_switch", {"capacity.expert_capacity": 4}),
    "mixlora_dynamic_E8_p08": ("mixlora_dynamic", {}),
    "mcore_z_extreme80_E6_K2": ("megatron", {}),
    "deepspeed_top1_E8_cf1": (
        "deepspeed_top1",
        {"balance.scope": "global", "capacity.capacity_scope": "global"},
    ),
    "deepspeed_top2_E8_cf1": (
        "deepspeed_top2",
        {"balance.scope": "global", "capacity.capacity_scope": "global"},
    ),
    "deepspeed_topk_E16_K3_probs_cf2": (
        "deepspeed_topk",
        {
            "balance.scope": "global",
            "capacity.capacity_scope": "global",
            "capacity.capacity_factor": 2,
        },
    ),
    "tutel_nodrop_E6_K3": (
        "tutel",
        {
            "balance.scope": "global",
            "balance.alpha_expert": 1,
            "capacity.capacity_scope": "global",
            "capacity.capacity_factor": 0,
        },
    ),
    "fastmoe_gshard_E16_W4": (
        "fastmoe_gshard",
        {
            "balance.scope": "global",
            "balance.alpha_expert": 1,
            "capacity.capacity_scope": "global",
            "router.second_choice": "best",
        },
    ),  # the case's reference keeps every second choice
    "fastmoe_switch_E6_cf2": (
        "fastmoe_switch",
        {
            "balance.scope": "global",
            "balance.alpha_expert": 1,
            "capacity.capacity_scope": "global",
            "capacity.capacity_factor": 2,
        },
    ),
}
SIZES = (
    "model.hidden_size",
    "model.num_experts",
    "model.moe_intermediate_size",
    "model.expert_type",
    "router.top_k",
    "router.bias_file",
    "cluster.",
    "data.",
    "output.",
)


def by_preset(name, of):
    preset, changes = PRESETS[name]
    return {
        "router.preset": preset,
        "model.num_shared_experts": 0,
        **{key: value for key, value in of.items() if key.startswith(SIZES)},
        **changes,
    }


def settings(case, folder):
    ours = case["family"].startswith(("ds", "hfds"))
    of = {
        "model.hidden_size": 4,
        "model.num_experts": case["E"],
        "model.moe_intermediate_size": 4,
        "model.expert_type": "identity",
        "router.top_k": case["top_k"],
        "router.score_func": score_func(case),
        "router.norm_topk_prob": (
            "yes" if case["norm_topk_prob"] and not case.get("sinkhorn") else "no"
        ),
        "router.routed_scaling_factor": case["routed_scaling_factor"] or 1,
        "balance.aux_form": form(case),
        "balance.scope": "global",
        "cluster.devices": case["n_device"],
        "data.source": "logits",
        "data.path": f"{folder}/logits.npy",
        "data.sequence_length": case["S"],
        "output.routing": "yes",
        "balance.alpha_expert": case.get("alpha1", 0),
        "balance.z_loss": case.get("z_coef", 0),
        **capacity(case),
    }
    if ours and case["n_group"] > 1:
        of.update(
            {
                "router.group_limit": {"max": "max", "top2sum": "top2_sum"}[case["group_score"]],
                "router.num_groups": case["n_group"],
                "router.topk_group": case["topk_group"],
            }
        )
    if case["family"] in ("ds2", "ds3"):
        of["router.norm_single"] = "no"
    if case["family"] == "ds2":
        of.update(
            {
                "router.scale_normalized": "no",
                "balance.alpha_device": case["alpha2"],
                "balance.alpha_comm": case["alpha3"],
                "balance.scope": "sequence" if case["seq_aux"] else "global",
            }
        )
    if case["family"] == "switch":
        of["balance.scope"] = "sequence"
    if case.get("bias"):
        of["router.bias_file"] = f"{folder}/{case['bias']}"
    if case.get("attention_mask"):
        of["data.mask"] = f"{folder}/{case['attention_mask']}"
    if case["topk_method"] == "top_p":
        of.update(
            {
                "router.method": "top_p",
                "router.top_p": case["top_p"],
                "router.temperature": case["temperature"] or 1,
                "router.temperature_on": "probabilities",
            }
        )
    if case.get(
        "sinkhorn"
    ):  # each device settles its own tokens; the reference has one that holds all
        of.update({"router.method": "sinkhorn", "cluster.devices": 1})
    if os.path.exists(os.path.join(folder, "dlogits_expert.npy")):
        of["output.tensors"] = "yes"
    if (
        case.get("loss_fn") == "importance"
    ):  # the average of two losses; Tutel's noise is gate_noise / E
        of.update(
            {
                "router.noise": case["gate_noise"] / case["E"],
                "balance.load_form": "tutel",
                "balance.importance_of": "scores",
                "balance.alpha_expert": 0,
                "balance.importance_loss": 0.5,
                "balance.load_loss": 0.5,
            }
        )
    return of
