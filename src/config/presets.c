/* presets.c: published systems as lists of settings. A preset only supplies defaults: a key that is
 * given wins.
 *
 * A preset holds what makes a router that router: the numbers of experts, scores, groups, weights
 * and coefficients. Widths, tokens and devices are left to the configuration (configs/<preset>.ini
 * says what it scaled). What differs from the published system is said in the description.
 * DeepSeek's rows come from the papers and their public code. The rows from mixtral on come from
 * the public configurations of the models as remembered, and say so. */
#include "config/presets.h"

#include <string.h>

#define REMEMBERED "Settings as remembered from the public configuration, not re-read."
#define SETTINGS MOE_SETTINGS
#define SET MOE_SET

const moe_preset moe_presets[] = {
    /* clang-format off */
    {"deepseek_moe_2b",
     SETTINGS(SET(model, num_experts, 63), SET(model, num_shared_experts, 1), SET(router, top_k, 7),
              SET(router, score_func, softmax), SET(router, group_limit, none),
              SET(router, norm_topk_prob, no), SET(router, routed_scaling_factor, 1),
              SET(router, norm_single, no), SET(balance, alpha_expert, 0.01),
              SET(balance, scope, sequence)),
     "DeepSeekMoE 2B (arXiv 2401.06066): 63 routed + 1 shared experts, top 7, alpha 0.01, nothing "
     "dropped; hidden 1280, one device."},
    {"deepseek_moe_16b",
     SETTINGS(SET(model, num_experts, 64), SET(model, num_shared_experts, 2), SET(router, top_k, 6),
              SET(router, score_func, softmax), SET(router, group_limit, none),
              SET(router, norm_topk_prob, no), SET(router, routed_scaling_factor, 1),
              SET(router, norm_single, no), SET(balance, alpha_expert, 0.001),
              SET(balance, scope, sequence)),
     "DeepSeekMoE 16B (arXiv 2401.06066): 64 routed + 2 shared experts, top 6, alpha 0.001; "
     "hidden 2048, expert width 1408, one device."},
    {"deepseek_moe_145b",
     SETTINGS(SET(model, num_experts, 128), SET(model, num_shared_experts, 4),
              SET(router, top_k, 12), SET(router, score_func, softmax),
              SET(router, group_limit, none), SET(router, norm_topk_prob, no),
              SET(router, routed_scaling_factor, 1), SET(router, norm_single, no),
              SET(balance, alpha_expert, 0.003), SET(balance, alpha_device, 0.05),
              SET(balance, scope, sequence)),
     "DeepSeekMoE 145B (arXiv 2401.06066): 128 routed + 4 shared experts, top 12, alpha 0.003 and "
     "0.05; hidden 4096, width 1/8 FFN, 4 devices."},
    {"deepseek_v2",
     SETTINGS(SET(model, num_experts, 160), SET(model, num_shared_experts, 2),
              SET(router, top_k, 6), SET(router, score_func, softmax),
              SET(router, group_limit, max), SET(router, topk_group, 3),
              SET(router, norm_topk_prob, no), SET(router, routed_scaling_factor, 16),
              SET(router, scale_normalized, no), SET(router, norm_single, no),
              SET(balance, alpha_expert, 0.003), SET(balance, alpha_device, 0.05),
              SET(balance, alpha_comm, 0.02), SET(balance, scope, sequence),
              SET(capacity, policy, device), SET(capacity, capacity_factor, 1),
              SET(capacity, exempt_sequences, 0.1), SET(model, num_heads, 128),
              SET(model, head_dim, 128), SET(model, rope_dim, 64), SET(model, kv_lora_rank, 512),
              SET(model, q_lora_rank, 1536)),
     "DeepSeek-V2 (arXiv 2405.04434): 160 routed + 2 shared experts, top 6 on at most 3 of 8 "
     "devices; hidden 5120, expert width 1536.\n"
     "Weights as in its public code: normalised or scaled, never both. Device-level dropping at "
     "factor 1.0, 10 % of the sequences exempt.\n"
     "With model.attention = mla: 128 heads of 128 + 64, c_KV of 512, low-rank queries of 1536; 60 "
     "layers, the first one dense. YaRN is left out."},
    {"deepseek_v2_lite",
     SETTINGS(SET(model, num_experts, 64), SET(model, num_shared_experts, 2), SET(router, top_k, 6),
              SET(router, score_func, softmax), SET(router, group_limit, none),
              SET(router, norm_topk_prob, no), SET(router, routed_scaling_factor, 1),
              SET(router, scale_normalized, no), SET(router, norm_single, no),
              SET(balance, alpha_expert, 0.001), SET(balance, scope, sequence),
              SET(model, num_heads, 16), SET(model, head_dim, 128), SET(model, rope_dim, 64),
              SET(model, kv_lora_rank, 512), SET(model, q_lora_rank, 0)),
     "DeepSeek-V2-Lite (arXiv 2405.04434): 64 routed + 2 shared experts, top 6, alpha 0.001; "
     "hidden 2048, expert width 1408, one device.\n"
     "With model.attention = mla: 16 heads of 128 + 64, c_KV of 512; 27 layers, the first one "
     "dense."},
    {"deepseek_v3",
     SETTINGS(SET(model, num_experts, 256), SET(model, num_shared_experts, 1),
              SET(router, top_k, 8), SET(router, score_func, sigmoid),
              SET(router, group_limit, top2_sum), SET(router, num_groups, 8),
              SET(router, topk_group, 4), SET(router, norm_topk_prob, yes),
              SET(router, routed_scaling_factor, 2.5), SET(router, scale_normalized, yes),
              SET(router, norm_single, no), SET(router, bias_update_rate, 0.001),
              SET(balance, alpha_expert, 0.0001), SET(balance, scope, sequence),
              SET(model, num_heads, 128), SET(model, head_dim, 128), SET(model, rope_dim, 64),
              SET(model, kv_lora_rank, 512), SET(model, q_lora_rank, 1536)),
     "DeepSeek-V3 (arXiv 2412.19437): 256 routed + 1 shared experts, top 8 on at most 4 of 8 "
     "nodes (64 devices); hidden 7168, expert width 2048.\n"
     "f counts the actual selection; balance.aux_selection = unlimited is the paper's equation 18 "
     "to the letter.\n"
     "The balancing bias starts at router.bias_file (or 0) and moves by 0.001 after each training "
     "step.\n"
     "With model.attention = mla: 128 heads of 128 + 64, c_KV of 512, low-rank queries of 1536; 61 "
     "layers, the first 3 dense."},
    {"deepseek_v2_mini",
     SETTINGS(SET(model, hidden_size, 128), SET(model, num_experts, 32),
              SET(model, num_shared_experts, 2), SET(model, moe_intermediate_size, 32),
              SET(model, num_layers, 3), SET(model, first_dense_layers, 1),
              SET(model, attention, mla), SET(model, num_heads, 4), SET(model, head_dim, 32),
              SET(model, rope_dim, 16), SET(model, kv_lora_rank, 64), SET(model, q_lora_rank, 96),
              SET(router, top_k, 4), SET(router, score_func, softmax),
              SET(router, group_limit, max), SET(router, topk_group, 3),
              SET(router, norm_topk_prob, no), SET(router, routed_scaling_factor, 4),
              SET(router, scale_normalized, no), SET(router, norm_single, no),
              SET(balance, alpha_expert, 0.003), SET(balance, alpha_device, 0.05),
              SET(balance, alpha_comm, 0.02), SET(balance, scope, sequence),
              SET(capacity, policy, device), SET(capacity, capacity_factor, 1),
              SET(capacity, exempt_sequences, 0.1)),
     "A small DeepSeek-V2 that trains on text (configs/deepseek_v2_mini.ini), ours: three blocks "
     "of latent attention and MoE, its router, losses\n"
     "and dropping, with 32 routed + 2 shared experts, top 4 on at most 3 of 8 devices; hidden "
     "128, 4 heads of 32 + 16, c_KV of 64; the first layer is dense."},
    {"deepseek_v3_mini",
     SETTINGS(SET(model, hidden_size, 128), SET(model, num_experts, 32),
              SET(model, num_shared_experts, 1), SET(model, moe_intermediate_size, 32),
              SET(model, num_layers, 3), SET(model, first_dense_layers, 1),
              SET(model, attention, mla), SET(model, num_heads, 4), SET(model, head_dim, 32),
              SET(model, rope_dim, 16), SET(model, kv_lora_rank, 64), SET(model, q_lora_rank, 96),
              SET(router, top_k, 4), SET(router, score_func, sigmoid),
              SET(router, group_limit, top2_sum), SET(router, num_groups, 8),
              SET(router, topk_group, 4), SET(router, norm_topk_prob, yes),
              SET(router, routed_scaling_factor, 2.5), SET(router, scale_normalized, yes),
              SET(router, norm_single, no), SET(router, bias_update_rate, 0.001),
              SET(balance, alpha_expert, 0.0001), SET(balance, scope, sequence)),
     "A small DeepSeek-V3 that trains on text (configs/deepseek_v3_mini.ini), ours: as "
     "deepseek_v2_mini, with V3's sigmoid, balancing bias,\n"
     "node limit (top 4 on at most 4 of 8 groups) and one shared expert."},
    {"mixtral",
     SETTINGS(SET(model, num_experts, 8), SET(model, num_shared_experts, 0), SET(router, top_k, 2),
              SET(router, score_func, softmax_topk), SET(router, group_limit, none),
              SET(router, norm_topk_prob, no), SET(router, routed_scaling_factor, 1),
              SET(balance, aux_form, mixtral), SET(balance, aux_layers, all),
              SET(balance, alpha_expert, 0.02), SET(balance, scope, global)),
     "Mixtral 8x7B: 8 experts, top 2, weights are a softmax over the chosen, alpha 0.02; hidden "
     "4096, expert width 14336.\n" REMEMBERED "\n"
     "Its loss (K at balance) is of the tokens of all layers put together, as in Hugging Face's "
     "code. Its input jitter\n"
     "is off by default; router.jitter_experts = yes is how it reads one."},
    {"qwen2_moe",
     SETTINGS(SET(model, num_experts, 64), SET(model, num_shared_experts, 1), SET(router, top_k, 8),
              SET(router, score_func, softmax), SET(router, group_limit, none),
              SET(router, norm_topk_prob, no), SET(router, routed_scaling_factor, 1),
              SET(balance, aux_form, mixtral), SET(balance, aux_layers, all),
              SET(balance, alpha_expert, 0.001), SET(balance, scope, global)),
     "Qwen2-MoE 57B-A14B: 64 routed + 1 shared experts, top 8, alpha 0.001; hidden 3584, expert "
     "width 2560.\n" REMEMBERED "\n"
     "Left out: the wider shared expert and its own gate. The loss is of all layers together, as "
     "for mixtral."},
    {"olmoe",
     SETTINGS(SET(model, num_experts, 64), SET(model, num_shared_experts, 0), SET(router, top_k, 8),
              SET(router, score_func, softmax), SET(router, group_limit, none),
              SET(router, norm_topk_prob, no), SET(router, routed_scaling_factor, 1),
              SET(balance, aux_form, mixtral), SET(balance, aux_layers, all),
              SET(balance, alpha_expert, 0.01), SET(balance, z_loss, 0.001),
              SET(balance, scope, global)),
     "OLMoE 1B-7B: 64 experts, top 8, alpha 0.01, z-loss 0.001; hidden 2048, expert width 1024.\n"
     REMEMBERED "\n"
     "The loss is of all layers together, as for mixtral."},
    {"switch",
     SETTINGS(SET(model, num_experts, 128), SET(model, num_shared_experts, 0),
              SET(model, expert_type, relu), SET(router, top_k, 1),
              SET(router, score_func, softmax), SET(router, group_limit, none),
              SET(router, norm_topk_prob, no), SET(router, routed_scaling_factor, 1),
              SET(router, jitter, 0.01), SET(balance, aux_form, switch),
              SET(balance, aux_layers, all),
              SET(balance, alpha_expert, 0.01), SET(balance, z_loss, 0.001),
              SET(balance, scope, sequence), SET(capacity, policy, sequence),
              SET(capacity, capacity_factor, 1.25), SET(capacity, drop, position)),
     "Switch-base-128 (arXiv 2101.03961): 128 experts, top 1, alpha 0.01, z-loss 0.001; hidden "
     "768, expert width 3072.\n" REMEMBERED "\n"
     "Loss and capacity (factor 1.25) by sequence as in Hugging Face's code, which puts the tokens "
     "of all layers together\n"
     "(balance.aux_layers = each is the paper's sum over layers) and takes the z-loss as their "
     "mean: with L layers set\nbalance.z_loss to 0.001 / L. "
     "f counts before dropping, as the paper has it.\n"
     "Input jitter 0.01 in training, of the gate alone, as in the paper. Hugging Face's code does "
     "that in bf16; in float32 its\n"
     "product in place reaches the experts too: router.jitter_experts = yes."},
    {"gshard",
     SETTINGS(SET(model, num_experts, 128), SET(model, num_shared_experts, 0),
              SET(model, expert_type, relu), SET(router, method, gshard),
              SET(router, second_choice, random), SET(router, top_k, 2),
              SET(router, score_func, softmax), SET(router, group_limit, none),
              SET(router, norm_topk_prob, yes), SET(router, routed_scaling_factor, 1),
              SET(balance, aux_form, gshard), SET(balance, alpha_expert, 0.01),
              SET(balance, scope, device), SET(capacity, policy, expert),
              SET(capacity, capacity_factor, 2), SET(capacity, capacity_scope, device),
              SET(capacity, drop, position), SET(capacity, first_choices, yes)),
     "GShard (arXiv 2006.16668): 128 experts on 128 devices, top 2, alpha 0.01; hidden 1024, "
     "expert width 8192.\n" REMEMBERED "\n"
     "The second expert is kept with probability 2 g2; a device is one of the paper's groups."},
    {"mixlora",
     SETTINGS(SET(model, num_experts, 8), SET(model, num_shared_experts, 0),
              SET(model, expert_type, lora), SET(model, lora_rank, 16), SET(router, top_k, 2),
              SET(router, score_func, softmax), SET(router, group_limit, none),
              SET(router, norm_topk_prob, yes), SET(router, routed_scaling_factor, 1),
              SET(balance, aux_form, mixtral), SET(balance, aux_layers, all),
              SET(balance, alpha_expert, 0.001), SET(balance, scope, global)),
     "MixLoRA (arXiv 2404.15159): 8 LoRA experts of rank 16, top 2, normalised weights, alpha "
     "0.001; hidden 4096.\n" REMEMBERED "\n"
     "No z-loss: its public code has one for MixLoRA-switch only. The loss is of all layers "
     "together, as for mixtral."},
    {"mixlora_switch",
     SETTINGS(SET(model, num_experts, 8), SET(model, num_shared_experts, 0),
              SET(model, expert_type, lora), SET(model, lora_rank, 16), SET(router, top_k, 1),
              SET(router, score_func, softmax), SET(router, group_limit, none),
              SET(router, norm_topk_prob, no), SET(router, routed_scaling_factor, 1),
              SET(balance, aux_form, switch), SET(balance, alpha_expert, 0.001),
              SET(balance, z_loss, 0.001), SET(balance, scope, global),
              SET(capacity, policy, sequence), SET(capacity, expert_capacity, 32),
              SET(capacity, drop, position)),
     "MixLoRA-switch (arXiv 2404.15159): 8 LoRA experts of rank 16, top 1, alpha 0.001, z-loss "
     "0.001, 32 tokens of a sequence per expert; hidden\n"
     "4096. " REMEMBERED " Its loss is of the whole batch, f counts before dropping."},
    {"mixlora_dynamic",
     SETTINGS(SET(model, num_experts, 8), SET(model, num_shared_experts, 0),
              SET(model, expert_type, lora), SET(model, lora_rank, 16), SET(router, method, top_p),
              SET(router, top_p, 0.8), SET(router, temperature, 1),
              SET(router, temperature_on, probabilities), SET(router, score_func, softmax),
              SET(router, group_limit, none), SET(router, norm_topk_prob, no),
              SET(router, routed_scaling_factor, 1), SET(balance, aux_form, mixtral),
              SET(balance, aux_layers, all), SET(balance, alpha_expert, 0.001),
              SET(balance, scope, global)),
     "MixLoRA-dynamic (arXiv 2404.15159): 8 LoRA experts of rank 16, as many as reach a "
     "probability of 0.8, alpha 0.001; hidden 4096.\n" REMEMBERED "\n"
     "A temperature, if given, divides the probabilities as in its public code."},
    {"megatron",
     SETTINGS(SET(router, top_k, 2), SET(router, score_func, softmax_topk),
              SET(router, group_limit, none), SET(router, norm_topk_prob, no),
              SET(router, routed_scaling_factor, 1), SET(balance, alpha_expert, 0.01),
              SET(balance, z_loss, 0.001), SET(balance, scope, global),
              SET(balance, aux_selection, unlimited)),
     "Megatron-Core's default router: top 2, weights are a softmax over the chosen logits; the "
     "loss counts plain top-K. alpha 0.01 and z-loss\n"
     "0.001 are the documentation's example. " REMEMBERED},
    {"deepspeed_top1",
     SETTINGS(SET(router, top_k, 1), SET(router, score_func, softmax),
              SET(router, group_limit, none), SET(router, norm_topk_prob, no),
              SET(router, routed_scaling_factor, 1), SET(balance, aux_form, gshard),
              SET(balance, alpha_expert, 0.01), SET(balance, scope, device),
              SET(capacity, policy, expert), SET(capacity, capacity_factor, 1),
              SET(capacity, min_capacity, 4), SET(capacity, rounding, deepspeed),
              SET(capacity, capacity_scope, device), SET(capacity, drop, position)),
     "DeepSpeed's top1gating: capacity factor 1.0, at least 4, alpha 0.01. " REMEMBERED "\n"
     "First come, first served: its random token selection (use_rts) is off. RSample noise is "
     "left out; its Jitter is router.jitter = 0.01. Both are off by default."},
    {"deepspeed_top2",
     SETTINGS(SET(router, top_k, 2), SET(router, score_func, softmax),
              SET(router, group_limit, none), SET(router, norm_topk_prob, yes),
              SET(router, routed_scaling_factor, 1), SET(balance, aux_form, gshard),
              SET(balance, alpha_expert, 0.01), SET(balance, scope, device),
              SET(capacity, policy, expert), SET(capacity, capacity_factor, 1),
              SET(capacity, min_capacity, 4), SET(capacity, rounding, deepspeed),
              SET(capacity, capacity_scope, device), SET(capacity, drop, position),
              SET(capacity, first_choices, yes), SET(capacity, renormalize, yes)),
     "DeepSpeed's top2gating: capacity factor 1.0, at least 4, first choices before second ones, "
     "weights normalised over what is kept, alpha 0.01.\n" REMEMBERED
     " The second choice is the second best; router.method = gshard with second_choice = sampled "
     "draws it, as its default does."},
    {"deepspeed_topk",
     SETTINGS(SET(router, top_k, 4), SET(router, score_func, softmax),
              SET(router, group_limit, none), SET(router, norm_topk_prob, yes),
              SET(router, routed_scaling_factor, 1), SET(balance, aux_form, deepseek),
              SET(balance, alpha_expert, 0.01), SET(balance, scope, device),
              SET(capacity, policy, expert), SET(capacity, capacity_factor, 1),
              SET(capacity, min_capacity, 4), SET(capacity, rounding, deepspeed),
              SET(capacity, capacity_scope, device), SET(capacity, drop, scores),
              SET(capacity, renormalize, yes)),
     "DeepSpeed's topkgating: K of the user (here 4), capacity factor 1.0, at least 4, lowest "
     "probabilities dropped, alpha 0.01; its loss is 1 at\n"
     "balance. " REMEMBERED},
    {"tutel",
     SETTINGS(SET(router, top_k, 2), SET(router, score_func, softmax),
              SET(router, group_limit, none), SET(router, norm_topk_prob, yes),
              SET(router, routed_scaling_factor, 1), SET(balance, aux_form, gshard),
              SET(balance, alpha_expert, 0.01), SET(balance, importance_of, scores),
              SET(balance, scope, device), SET(capacity, policy, expert),
              SET(capacity, capacity_factor, 1), SET(capacity, rounding, tutel),
              SET(capacity, capacity_scope, device), SET(capacity, drop, position),
              SET(capacity, first_choices, yes)),
     "Tutel's top-k gate: top 2, capacity factor 1.0, first choices before second ones, GShard's "
     "loss; the coefficient is the user's, here 0.01.\n" REMEMBERED
     " Its other loss, the average of importance and smooth load: router.noise > 0, load_form = "
     "tutel, alpha_expert = 0,\n"
     "importance_loss and load_loss at half the coefficient. Batch-prioritised: capacity.drop = "
     "batch_priority."},
    {"fastmoe_naive",
     SETTINGS(SET(router, top_k, 2), SET(router, score_func, softmax_topk),
              SET(router, group_limit, none), SET(router, norm_topk_prob, no),
              SET(router, routed_scaling_factor, 1)),
     "FastMoE's naive gate: top 2, weights are a softmax over the chosen logits, no loss. "
     REMEMBERED},
    {"fastmoe_gshard",
     SETTINGS(SET(router, method, gshard), SET(router, second_choice, random),
              SET(router, top_k, 2), SET(router, score_func, softmax_topk),
              SET(router, group_limit, none), SET(router, norm_topk_prob, no),
              SET(router, routed_scaling_factor, 1), SET(balance, aux_form, gshard),
              SET(balance, alpha_expert, 0.01), SET(balance, scope, device),
              SET(capacity, policy, expert), SET(capacity, capacity_factor, 1.2),
              SET(capacity, rounding, fastmoe), SET(capacity, capacity_scope, device),
              SET(capacity, drop, position)),
     "FastMoE's GShard gate: top 2, the second kept with probability 2 g2, capacity factor 1.2; "
     "the coefficient is the user's, here 0.01.\n" REMEMBERED "\n"
     "Its loss has (experts of one worker)^2 where GShard's has N^2: with W workers it is W^2 "
     "times smaller than here. It counts first choices."},
    {"fastmoe_switch",
     SETTINGS(SET(router, top_k, 1), SET(router, score_func, softmax),
              SET(router, group_limit, none), SET(router, norm_topk_prob, no),
              SET(router, routed_scaling_factor, 1), SET(router, noise, 0.0577),
              SET(balance, aux_form, switch), SET(balance, alpha_expert, 0.01),
              SET(balance, scope, device), SET(capacity, policy, expert),
              SET(capacity, capacity_factor, 1.2), SET(capacity, rounding, ceil),
              SET(capacity, capacity_scope, device), SET(capacity, drop, position)),
     "FastMoE's Switch gate: top 1, capacity factor 1.2; the coefficient is the user's, here "
     "0.01. " REMEMBERED "\n"
     "Its noise is uniform within 0.1, here Gaussian of the same variance; its loss counts what "
     "is left after dropping, here before."},
    /* clang-format on */
};

const int moe_num_presets = sizeof moe_presets / sizeof moe_presets[0];

const moe_preset *moe_preset_find(const char *name) {
    for (int i = 0; i < moe_num_presets; i++) {
        if (strcmp(moe_presets[i].name, name) == 0) {
            return &moe_presets[i];
        }
    }
    return NULL;
}

const char *moe_preset_value(const moe_preset *preset, enum moe_key_id key) {
    for (const moe_setting *s = preset->settings; s->key != MOE_KEY_NONE; s++) {
        if (s->key == key) {
            return s->value;
        }
    }
    return NULL;
}
