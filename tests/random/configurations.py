"""Draws configurations over the whole key table, each from one seed.

Sizes are small, and most configurations are valid: what a method, a loss or a capacity needs is
given, as the sentences of the program ask for it. Keys that no rule here knows are drawn from their
row of the table, so that a new key is tried without a change here. One configuration in eight gets
a value that may not go with the others: it is refused, or it runs.
"""

import random

# Values of these keys are refused as long as the program lacks what they stand for, or because
# only --placements reads them, or do nothing without a checkpoint to generate with. They are
# drawn among the rare values only.
UNAVAILABLE = set(
    """
    exchange.algorithm
    placement.load placement.fit placement.score
    generate.run generate.prompt generate.prompts generate.max_new_tokens generate.temperature
    generate.sequences_per_device
    """.split()
)
# What a size may be at most where a rare value is drawn: the test is to stay quick.
SMALL = 24
RANKED = ("topk", "switch", "gshard")
BLIND = ("hash", "random", "round_robin")
BY_BATCH = ("lplb", "llep", "moonep")  # placements that decide in every batch


class Case:
    """One configuration: its settings, and what shapes the files that they name."""

    def __init__(self, seed, settings, extra):
        self.seed, self.settings, self.extra = seed, dict(settings), dict(extra)

    def copy(self):
        return Case(self.seed, self.settings, self.extra)

    def get(self, key, table):
        if key in self.settings:
            return str(self.settings[key])
        preset = table.presets.get(self.settings.get("router.preset"), {})
        return preset.get(key, table.keys[key].default)

    def number(self, key, table):
        return int(float(self.get(key, table)))

    def trains(self):
        return self.settings.get("run.mode") == "train"

    def devices(self):
        return int(self.settings["cluster.devices"])

    def num_experts(self, table):
        """Routed experts after segmentation."""
        parts = self.number("model.expert_segmentation", table)
        experts = self.number("model.num_experts", table)
        shared = self.number("model.num_shared_experts", table)
        return experts if parts == 1 else parts * experts - shared

    def ini(self):
        sections = {}
        for key, value in self.settings.items():
            section, name = key.split(".")
            sections.setdefault(section, []).append(f"{name} = {value}\n")
        return "".join(f"[{s}]\n{''.join(lines)}" for s, lines in sections.items())


class Drawing:
    def __init__(self, seed, table):
        self.random, self.table = random.Random(f"configuration {seed}"), table
        self.case = Case(seed, {}, {})

    # --- small helpers ---

    def chance(self, probability):
        return self.random.random() < probability

    def one_of(self, *values):
        return self.random.choice(values)

    def put(self, key, value):
        self.case.settings[key] = value

    def maybe(self, probability, key, *values):
        if self.chance(probability):
            self.put(key, self.one_of(*values))

    def get(self, key):
        return self.case.get(key, self.table)

    def preset_has(self, key):
        return key in self.table.presets.get(self.case.settings.get("router.preset"), {})

    # --- what is run, on which data ---

    def draw_mode(self):
        self.put("run.seed", self.random.randrange(1, 1000))
        self.maybe(0.05, "run.seed", 0, 2**53)
        self.maybe(0.2, "run.gemm", *self.table.keys["run.gemm"].names)
        self.case.extra["dtype"] = self.one_of("<f4", "<f4", "<f8", "<f2")
        if self.chance(0.4):
            self.put("run.mode", "train")
            self.put("run.steps", self.random.randint(1, 6))
        else:
            self.maybe(0.5, "run.steps", 1, 2, 3)
        if self.chance(0.25):
            self.put("router.preset", self.one_of(*sorted(self.table.presets)))
        trains = self.case.trains()
        weights = (55, 35, 1, 1) if trains else (45, 10, 25, 20)
        sources = ("synthetic", "text", "logits", "routing")
        self.source = self.random.choices(sources, weights)[0]
        self.recorded = self.source in ("logits", "routing")

    def draw_method(self):
        """The method that acts, before anything that depends on it."""
        self.method = self.get("router.method")
        if self.source == "routing":
            return
        if self.preset_has("router.method") and self.chance(0.7):
            return
        methods = self.table.keys["router.method"].names
        weights = [8 if m == "topk" else 2 if m not in BLIND else 1 for m in methods]
        self.method = self.random.choices(methods, weights)[0]
        self.put("router.method", self.method)
        if self.method != "gshard":
            if self.preset_has("router.second_choice"):
                self.put("router.second_choice", "best")

    def draw_sizes(self):
        devices = self.one_of(1, 2, 2, 2, 3, 4, 4, 4, 6, 8, 8)
        least = 2 if self.get("router.method") == "gshard" else 1
        share = self.one_of(*[e for e in (1, 2, 2, 3, 4, 4, 8) if least <= e * devices <= 64])
        routed = devices * share
        width, parts, shared = self.random.randint(1, 16), 1, None
        if self.chance(0.12) and self.method not in ("switch", "gshard") and not self.recorded:
            parts = self.one_of(2, 3)
            shared = -routed % parts + parts * self.one_of(0, 0, 1)
            width = parts * self.random.randint(1, 6)
            self.put("model.expert_segmentation", parts)
        elif self.chance(0.4):
            shared = self.one_of(0, 1, 2)
        self.put("cluster.devices", devices)
        self.put("model.num_experts", (routed + (shared or 0)) // parts if parts > 1 else routed)
        if shared is not None:
            self.put("model.num_shared_experts", shared)
        self.put("model.hidden_size", self.random.randint(1, 32))
        self.put("model.moe_intermediate_size", width)
        self.maybe(0.4, "model.num_layers", 1, 2, 2, 3)
        self.maybe(0.6, "model.expert_type", *self.table.keys["model.expert_type"].names)
        if self.get("model.expert_type") == "lora":
            self.put("model.lora_rank", self.random.randint(1, 4))
            self.maybe(0.5, "model.lora_alpha", 0, 1, 2.5, 16)
        self.maybe(0.2, "model.residual", "yes", "no")
        self.maybe(0.2, "model.norm", "none", "rmsnorm")
        if self.get("model.norm") == "none" and self.get("model.num_layers") != "1":
            if float(self.get("model.lora_alpha")) > 1:
                self.put("model.lora_alpha", 1)  # values would grow beyond a float's range
        nodes = [d for d in range(1, devices + 1) if devices % d == 0]
        self.maybe(0.4, "cluster.devices_per_node", *nodes)
        self.routed, self.parts, self.shared = routed, parts, shared or 0
        self.draw_placement()
        self.draw_top_k()

    def draw_placement(self):
        devices, routed = self.case.devices(), self.routed
        by_load = ("eplb", "eplb_global", "flashlb", "epic", "joint", "lplb")
        self.maybe(0.4, "placement.policy", "block", "round_robin", "file", *by_load, *BY_BATCH[1:])
        if self.get("placement.policy") in BY_BATCH:
            most = routed - routed // devices
            if most < 1:
                self.put("placement.policy", "eplb_global")
            else:
                self.put(
                    "placement.redundant_experts", devices * self.random.randint(1, min(most, 3))
                )
        elif self.chance(0.4):
            most = routed - routed // devices
            self.put("placement.redundant_experts", devices * self.random.randint(0, min(most, 3)))
        policy = self.get("placement.policy")
        if policy == "file":
            self.put("placement.file", "placement.npy")
            self.case.extra["placement_of_layers"] = self.chance(0.5)
        if policy in by_load:
            self.maybe(0.6, "placement.rebalance_every", 1, 2, 3)
            self.maybe(0.3, "placement.window", 0, 1)
            self.maybe(0.3, "placement.hysteresis", 0, 0.1, 1)

    def draw_top_k(self):
        most = min(self.routed, 6)
        if self.method == "switch":
            self.top_k, given = 1, self.preset_has("router.top_k") or self.chance(0.5)
        elif self.method == "gshard":
            self.top_k, given = 2, self.preset_has("router.top_k") or self.chance(0.5)
        elif (
            self.method == "top_p"
            and self.source != "routing"
            and not self.preset_has("router.top_k")
            and self.parts == 1
        ):
            self.top_k, given = self.random.randint(1, self.routed), self.chance(0.5)
            if not given:
                self.top_k = None
        else:
            self.top_k, given = self.random.randint(1, most), True
        if self.parts > 1:
            # m K - N_s experts are chosen
            least = self.shared // self.parts + 1
            coarse = self.random.randint(least, max(least, (most + self.shared) // self.parts))
            self.top_k = self.parts * coarse - self.shared
            self.put("router.top_k", coarse)
        elif given:
            self.put("router.top_k", self.top_k)

    def draw_data(self):
        if self.source != "synthetic":
            self.put("data.source", self.source)
        self.put("data.tokens_per_device", self.random.randint(1, 24))
        self.maybe(0.7, "data.sequence_length", 0, 1, 3, 5, 8, 16, 40)
        if self.source == "text":
            self.draw_text()
        elif self.recorded:
            self.draw_recorded()
        else:
            self.maybe(0.3, "data.skew", 0, 0.5, 2)
            self.maybe(0.3, "data.num_topics", 1, 2, 7)
            self.maybe(0.2, "data.drift", 0.3, 1, 5)
            self.maybe(0.2, "data.topic_strength", 0, 0.3, 1)
            self.maybe(0.2, "data.topic_persistence", 0, 0.9, 1)
            single = self.get("model.num_layers") == "1" and self.parts == 1
            if not self.case.trains() and single and self.chance(0.2):
                self.put("model.load", "layer")
                self.case.extra["tokens"] = self.random.randint(1, 40)
                self.case.extra["gradient"] = self.chance(0.7)
                self.put("output.tensors", "yes")

    def draw_dense(self):
        """Dense layers stand in front of MoE layers and need vectors."""
        layers = int(self.get("model.num_layers"))
        if self.recorded or layers == 1:
            return
        self.maybe(0.4, "model.first_dense_layers", *range(layers))
        self.maybe(0.5, "model.intermediate_size", 1, 5, 40)

    def draw_attention(self):
        """Attention has vectors, a residual stream and whole sequences on every device."""
        wanted = self.preset_has("model.attention") or self.chance(0.25)
        fits = not self.recorded and "model.load" not in self.case.settings
        if self.get("model.residual") == "no" or not fits or not wanted:
            if self.preset_has("model.attention"):
                self.put("model.attention", "none")
            return
        heads, head = self.random.randint(1, 4), self.random.randint(1, 8)
        self.put("model.attention", self.one_of("mha", "mla"))
        self.put("model.num_heads", heads)
        self.put("model.head_dim", head)
        self.put("model.rope_dim", self.random.randrange(0, head + 1, 2))
        self.put("model.num_kv_heads", self.one_of(0, 1, heads))
        self.put("model.kv_lora_rank", self.random.randint(1, 12))
        self.put("model.q_lora_rank", self.one_of(0, 0, 3, 8))
        self.maybe(0.5, "model.rope_order", "interleaved", "half")
        if self.case.devices() > 1 or self.get("data.sequence_length") == "0":
            length = self.one_of(1, 3, 5, 8, 16)
            self.put("data.sequence_length", length)
            self.put("data.tokens_per_device", length * self.random.randint(1, 24 // length))

    def draw_text(self):
        domains = self.one_of(1, 1, 2, 3)
        self.put("data.path", ":".join(f"text-{d}" for d in range(domains)))
        self.maybe(0.5, "train.validation_share", 0.1, 0.3, 0.5)
        self.case.extra["folder"] = self.chance(0.3)

    def draw_recorded(self):
        extra = self.case.extra
        extra["tokens"] = self.random.randint(1, 60)
        extra["flat"] = self.chance(0.3)
        wanted = int(self.case.settings.get("run.steps", 1))
        extra["steps"] = max(wanted, self.random.randint(1, 3) if self.chance(0.4) else 1)
        self.put("data.path", f"{self.source}.npy")
        if self.chance(0.3):
            self.put("data.mask", "mask.npy")
            self.maybe(0.6, "data.padding", "dropped")
        if self.chance(0.25):
            self.put("data.boundaries", "boundaries.npy")
        if self.source == "logits":
            extra["ties"] = self.chance(0.2)
            extra["disabled"] = self.chance(0.25)
            extra["scale"] = self.one_of(1.5, 1.5, 1.5, 0.01, 30)
            return
        extra["columns"] = self.top_k
        extra["holes"] = self.chance(0.4)
        if self.chance(0.5) and self.routed >= 6 and "router.preset" not in self.case.settings:
            self.case.settings.pop("router.top_k", None)
        if self.chance(0.5):
            self.put("data.scores", "scores.npy")
        if self.chance(0.5):
            self.put("data.weights", "weights.npy")

    # --- router ---

    def draw_router(self):
        scores = list(self.table.keys["router.score_func"].names)
        if self.method == "top_p":
            scores = ["softmax", "softmax_topk"]
        if self.get("router.score_func") not in scores:
            self.put("router.score_func", self.one_of(*scores))
        self.maybe(0.5, "router.score_func", *scores)
        if self.method == "switch":
            if self.get("router.norm_topk_prob") == "yes":
                self.put("router.norm_topk_prob", "no")
        else:
            self.maybe(0.4, "router.norm_topk_prob", "yes", "no")
        if self.method == "gshard":
            self.maybe(0.5, "router.second_choice", *self.table.keys["router.second_choice"].names)
        if self.method == "top_p":
            self.maybe(0.5, "router.top_p", 0.1, 0.5, 0.9, 1)
            self.maybe(0.5, "router.temperature", 0.5, 1, 2)
            self.maybe(0.5, "router.temperature_on", "logits", "probabilities")
        if self.method == "sinkhorn":
            self.maybe(0.5, "router.sinkhorn_tolerance", 0.1, 0.01, 1e-6)
            self.maybe(0.2, "router.sinkhorn_iterations", 1, 50, 5000)
        self.maybe(0.2, "router.routed_scaling_factor", 0.5, 2.5, 16, 0, -1)
        self.maybe(0.2, "router.scale_normalized", "yes", "no")
        self.maybe(0.2, "router.norm_single", "yes", "no")
        self.maybe(0.2, "router.gate_scale", 0.1, 0.5, 3)
        ranked = self.method in RANKED
        if ranked and self.source != "routing":
            self.maybe(0.2, "router.bias_file", "bias.npy")
            self.case.extra["bias_of_layers"] = self.chance(0.5)
            self.maybe(0.2, "router.bias_update_rate", 0.001, 0.1)
            self.maybe(0.1, "router.bias_update", "sign", "proportional")
            self.maybe(0.1, "router.bias_centered", "yes", "no")
        elif not ranked and float(self.get("router.bias_update_rate")) > 0:
            self.put("router.bias_update_rate", 0)

    def draw_groups(self):
        sampled = self.method == "gshard" and self.get("router.second_choice") == "sampled"
        free = self.method in BLIND or self.method == "expert_choice" or sampled
        limits = list(self.table.keys["router.group_limit"].names)
        devices = self.case.devices()
        divisors = [g for g in range(1, self.routed + 1) if self.routed % g == 0]
        straddling = [g for g in divisors if g % devices and devices % g]
        groups = self.one_of(devices, devices, self.one_of(*divisors), *straddling[:2])
        size = self.routed // groups
        fits = [m for m in range(1, groups + 1) if (self.top_k or 1) <= m * size]
        # a recorded routing is not chosen under a limit: one that breaks it fails its self-check
        free = free or self.source == "routing"
        limit = "none" if free or self.chance(0.5) else self.one_of(*limits)
        most = self.one_of(*fits) if fits else groups
        chosen = self.top_k or most * size
        if limit == "quota" and (chosen % most or self.method == "top_p"):
            limit = "max"
        if limit == "topk_sum" and chosen < most:
            limit = "max"
        if limit == "top2_sum" and size < 2:
            limit = "max"
        if limit != "none" or self.preset_has("router.group_limit") or self.chance(0.1):
            self.put("router.group_limit", limit)
        if limit != "none" or self.preset_has("router.num_groups"):
            same = groups == devices and self.chance(0.5)
            self.put("router.num_groups", 0 if same else groups)
            self.put("router.topk_group", most)

    def draw_noise(self):
        """What only training does; idle beside a forward pass."""
        probability = 0.3 if self.case.trains() else 0.03
        self.maybe(probability, "router.noise", 0.01, 0.3)
        self.maybe(probability / 2, "router.noise_form", "gaussian", "softplus")
        self.maybe(probability / 2, "router.jitter", 0.01, 0.2)
        self.maybe(probability / 2, "router.jitter_experts", "yes", "no")
        self.maybe(probability / 2, "router.expert_dropout", 0.1, 0.5)

    # --- losses ---

    def draw_balance(self):
        for key in ("alpha_expert", "alpha_device", "alpha_comm"):
            self.maybe(0.4, f"balance.{key}", 0, 0.001, 0.05, 1)
        logits = self.source != "routing" or self.chance(0.2)
        if logits:
            self.maybe(0.3, "balance.z_loss", 0.001, 0.1)
        elif float(self.get("balance.z_loss")) > 0:
            self.put("balance.z_loss", 0)
        self.maybe(0.2, "balance.importance_loss", 0.01, 0.5)
        for key in (
            "importance_of",
            "scope",
            "comm_count",
            "comm_count_local",
            "device_p",
            "aux_selection",
            "aux_form",
        ):
            self.maybe(0.25, f"balance.{key}", *self.table.keys[f"balance.{key}"].names)
        if self.get("placement.policy") in BY_BATCH:
            self.put("balance.aux_selection", "actual")
        if self.get("balance.comm_count") == "selections":
            self.case.settings.pop("balance.comm_count_local", None)
        if self.get("balance.aux_form") in ("mixtral", "switch"):
            self.maybe(0.4, "balance.aux_layers", "each", "all")
        if self.case.trains():
            self.maybe(0.2, "balance.begin_step", 1, 2, 10)
            self.maybe(0.2, "balance.ramp_steps", 1, 3)
        self.draw_load()

    def draw_load(self):
        plain = self.get("router.group_limit") == "none" and self.method in ("topk", "switch")
        biased = self.get("router.bias_file") or float(self.get("router.bias_update_rate")) > 0
        noisy = float(self.get("router.noise")) > 0
        softplus = self.get("router.noise_form") == "softplus"
        forms = []
        if plain and not biased and (noisy or softplus):
            forms.append("shazeer")
        if noisy and not softplus and self.get("router.score_func").startswith("softmax"):
            forms.append("tutel")
        if forms and self.chance(0.6):
            self.put("balance.load_form", self.one_of(*forms))
            self.maybe(0.7, "balance.load_loss", 0.01, 0.5)

    # --- capacity ---

    def draw_capacity(self):
        normalised = (
            self.get("router.norm_topk_prob") == "yes"
            or self.get("router.score_func") == "softmax_topk"
        )
        may_change_weights = normalised and self.source != "routing"
        if self.preset_has("capacity.renormalize") and not may_change_weights:
            self.put("capacity.renormalize", "no")
        policies = self.table.keys["capacity.policy"].names
        self.maybe(0.2 if self.preset_has("capacity.policy") else 0.4, "capacity.policy", *policies)
        policy = self.get("capacity.policy")
        if policy == "none":
            return
        self.maybe(0.6, "capacity.capacity_factor", 0.3, 0.7, 1.3, 2, 0)
        self.maybe(0.4, "capacity.rounding", *self.table.keys["capacity.rounding"].names)
        self.maybe(0.3, "capacity.min_capacity", 1, 4)
        self.maybe(0.3, "capacity.first_choices", "yes", "no")
        if policy == "device" and self.preset_has("capacity.expert_capacity"):
            self.put("capacity.expert_capacity", 0)
        if policy == "sequence":
            self.maybe(0.5, "capacity.drop", "position")
            for key, value in (("exempt_sequences", 0), ("capacity_scope", "global")):
                if self.preset_has(f"capacity.{key}"):
                    self.put(f"capacity.{key}", value)
        else:
            self.maybe(0.6, "capacity.drop", *self.table.keys["capacity.drop"].names)
            self.maybe(0.3, "capacity.exempt_sequences", 0.1, 0.5, 1)
            self.maybe(0.4, "capacity.capacity_scope", "global", "device")
        if policy != "device":
            self.maybe(0.3, "capacity.expert_capacity", 1, 3, 8)
        if policy == "expert":
            self.maybe(0.2, "capacity.pad_to_capacity", "yes", "no")
        if self.source != "routing" and self.method not in BLIND:
            self.maybe(0.3, "capacity.overflow", "drop", "next_choice")
        if may_change_weights:
            self.maybe(0.3, "capacity.renormalize", "yes", "no")

    # --- training and results ---

    def draw_training(self):
        if not self.case.trains():
            return
        self.maybe(0.8, "train.checkpoint_every", 1, 1, 2, 2, 3)
        self.maybe(0.4, "train.save_final", "yes")
        self.maybe(0.5, "train.optimizer", "sgd", "adamw")
        self.maybe(0.5, "train.learning_rate", 0.01, 0.001, 0.1)
        self.maybe(0.2, "train.warmup_steps", 1, 3)
        self.maybe(0.3, "train.schedule", "constant", "cosine")
        self.maybe(0.2, "train.beta1", 0, 0.5)
        self.maybe(0.2, "train.beta2", 0.9, 0.99)
        self.maybe(0.1, "train.epsilon", 1e-6)
        self.maybe(0.3, "train.weight_decay", 0.01, 0.1)
        self.maybe(0.3, "train.clip_norm", 0.01, 1)
        self.maybe(0.3, "train.accumulate", 1, 2, 3)
        if self.get("train.accumulate") in ("2", "3") and self.chance(0.3):
            self.put("balance.scope", "global")
            self.put("balance.global_batch", "step")
        self.maybe(0.3, "train.context", 1, 2, 5)
        self.maybe(0.3, "train.validation_every", 1, 2)
        self.maybe(0.3, "train.validation_batches", 1, 2)
        self.maybe(0.2, "train.specialization", "yes", "no")
        self.maybe(0.3, "train.recompute", "yes", "no")

    def draw_chunks(self):
        tokens = self.case.number("data.tokens_per_device", self.table)
        if "tokens" in self.case.extra:  # those of files, of the whole batch
            tokens = self.case.extra["tokens"] // self.case.devices()
        if self.get("exchange.mode") == "two_level":
            return
        self.maybe(0.4, "exchange.chunks", 1, *(c for c in (2, 3, 7, 24) if c <= tokens))
        if self.case.number("exchange.chunks", self.table) > 1:
            self.maybe(0.1, "exchange.transport", "auto", "alltoallv")
            return
        self.maybe(0.2, "exchange.transport", "auto", "shared")

    def draw_output(self):
        self.maybe(0.5, "exchange.mode", "token", "selection", "two_level", "two_level")
        if self.get("exchange.mode") == "two_level":
            self.maybe(0.5, "exchange.node_sum", "yes", "no")
        self.draw_chunks()
        if self.get("run.gemm") != "blas":  # which has no products in bf16
            self.maybe(0.1, "model.compute", "bf16")
        self.maybe(0.3, "exchange.payload", "bf16", "fp8")
        if self.get("exchange.payload") == "fp8":
            self.maybe(0.5, "exchange.fp8_scale", "fp32", "ue8m0")
        self.maybe(0.2, "exchange.combine_payload", "bf16")
        self.maybe(0.1, "exchange.row_protocol", "deepep_low_latency", "deepep_normal", "deepep_v2")
        self.maybe(0.1, "cluster.model_hidden_size", 7168)
        self.maybe(0.1, "cluster.file", "cluster.ini")
        self.maybe(0.5, "output.routing", "yes", "no")
        if not self.case.trains():
            self.maybe(0.4, "output.tensors", "yes", "no")
        self.maybe(0.1, "output.timeline", "yes", "no")
        self.maybe(0.1, "output.every", 1, 2)

    # --- keys that no rule knows, and values that may not fit ---

    def any_value(self, key):
        if key.kind in ("enum", "bool"):
            return self.one_of(*key.names)
        if key.kind == "path":
            return "missing.npy"
        values = [v for v in (0, 1, 2, 3, 5, key.least) if key.least <= v <= min(key.most, SMALL)]
        if key.kind == "float":
            values += [v for v in (-1, 0.25, 0.5, 1.5) if key.least <= v <= key.most]
        value = self.one_of(*values) if values else key.default
        return int(value) if key.kind == "int" and values else value

    def draw_rest(self):
        for name, key in self.table.keys.items():
            known = name in KNOWN_KEYS or name in UNAVAILABLE or key.kind == "path"
            if not known and name not in self.case.settings and self.chance(0.08):
                self.put(name, self.any_value(key))

    def keep_finite(self):
        """Without a norm values grow from layer to layer, and plain SGD takes steps as long as the
        gradient times a learning rate of 0.1: both soon end in NaN, as they have to.
        """
        plain = self.get("train.optimizer") == "sgd" and self.get("train.learning_rate") == "0.1"
        if self.case.trains() and (plain or self.get("model.norm") == "none"):
            self.case.settings.setdefault("train.clip_norm", 1)

    def draw_rare(self):
        if not self.chance(0.125):
            return
        for _ in range(self.one_of(1, 1, 2)):
            name = self.one_of(*self.table.keys)
            # beta2 = 0 divides by the gradient of one step, and training diverges
            costly = ("cluster.devices", "run.steps", "data.tokens_per_device")
            if name not in (*costly, "train.beta2"):
                self.put(name, self.any_value(self.table.keys[name]))


# Keys that a rule above draws or leaves alone: threads are a comparison of their own.
KNOWN_KEYS = """
    model.first_dense_layers model.intermediate_size
    model.attention model.num_heads model.num_kv_heads model.head_dim model.rope_dim
    model.kv_lora_rank model.q_lora_rank model.residual train.beta2
    run.seed run.steps run.mode run.threads run.gemm model.num_layers model.hidden_size
    model.num_experts model.num_shared_experts model.moe_intermediate_size model.expert_type
    model.lora_rank model.expert_segmentation router.preset router.method router.score_func
    router.top_k router.group_limit router.num_groups router.topk_group router.norm_topk_prob
    router.second_choice router.temperature router.bias_update_rate router.noise
    router.noise_form router.sinkhorn_iterations router.routed_scaling_factor router.gate_scale
    balance.z_loss balance.load_form balance.load_loss balance.aux_layers balance.comm_count_local
    balance.global_batch
    capacity.policy
    capacity.expert_capacity capacity.exempt_sequences capacity.capacity_scope capacity.drop
    capacity.overflow capacity.renormalize capacity.pad_to_capacity cluster.devices
    cluster.devices_per_node placement.policy placement.redundant_experts
    placement.rebalance_every placement.window placement.hysteresis
    exchange.chunks exchange.transport
    data.source data.tokens_per_device data.sequence_length
    data.mask data.padding data.boundaries router.bias_file data.num_topics data.drift
    train.learning_rate train.accumulate train.context train.validation_every
    train.validation_batches train.validation_share train.specialization train.checkpoint_every
    train.save_final
""".split()


def draw(seed, table):
    d = Drawing(seed, table)
    d.draw_mode()
    d.draw_method()
    d.draw_sizes()
    d.draw_data()
    d.draw_attention()
    d.draw_dense()
    d.draw_router()
    d.draw_groups()
    d.draw_noise()
    d.draw_balance()
    d.draw_capacity()
    d.draw_training()
    d.draw_output()
    d.draw_rest()
    d.keep_finite()
    d.draw_rare()
    return d.case
