/* presets.c: published systems as lists of keys. A preset only supplies defaults: a key that is
 * given wins.
 *
 * Presets hold what makes a router that router: N, K, N_s, scores, groups, weights, coefficients.
 * Widths, tokens and devices are left to the configuration (configs/<preset>.ini says what it
 * scaled). What differs from the system is said in the description. DeepSeek's rows come from the
 * papers and their public code; rows from mixtral down from the models' public configurations as
 * remembered.
 */
#include <string.h>

#include "config/table.h"

#define REMEMBERED "Settings as remembered from the public configuration, not re-read."
#define NO_GROUPS " router.group_limit=none"

/* clang-format off */
const moe_preset moe_presets[] = {
    {"deepseek_moe_2b",
     "model.num_experts=63 model.num_shared_experts=1 router.top_k=7 router.score_func=softmax" NO_GROUPS
     " router.norm_topk_prob=no router.routed_scaling_factor=1 router.norm_single=no balance.alpha_expert=0.01 balance.scope=sequence",
     "DeepSeekMoE 2B (arXiv 2401.06066): 63 routed + 1 shared experts, top 7, alpha 0.01, nothing dropped; hidden 1280, one device."},
    {"deepseek_moe_16b",
     "model.num_experts=64 model.num_shared_experts=2 router.top_k=6 router.score_func=softmax" NO_GROUPS
     " router.norm_topk_prob=no router.routed_scaling_factor=1 router.norm_single=no balance.alpha_expert=0.001 balance.scope=sequence",
     "DeepSeekMoE 16B (arXiv 2401.06066): 64 routed + 2 shared experts, top 6, alpha 0.001; hidden 2048, expert width 1408, one device."},
    {"deepseek_moe_145b",
     "model.num_experts=128 model.num_shared_experts=4 router.top_k=12 router.score_func=softmax" NO_GROUPS
     " router.norm_topk_prob=no router.routed_scaling_factor=1 router.norm_single=no balance.alpha_expert=0.003 balance.alpha_device=0.05"
     " balance.scope=sequence",
     "DeepSeekMoE 145B (arXiv 2401.06066): 128 routed + 4 shared experts, top 12, alpha 0.003 and 0.05; hidden 4096, width 1/8 FFN, 4 devices."},
    {"deepseek_v2",
     "model.num_experts=160 model.num_shared_experts=2 router.top_k=6 router.score_func=softmax router.group_limit=max router.topk_group=3"
     " router.norm_topk_prob=no router.routed_scaling_factor=16 router.scale_normalized=no router.norm_single=no"
     " balance.alpha_expert=0.003 balance.alpha_device=0.05 balance.alpha_comm=0.02 balance.scope=sequence"
     " capacity.policy=device capacity.capacity_factor=1 capacity.exempt_sequences=0.1",
     "DeepSeek-V2 (arXiv 2405.04434): 160 routed + 2 shared experts, top 6 on at most 3 of 8 devices; hidden 5120, expert width 1536.\n"
     "Weights as in its public code: normalised or scaled, never both. Device-level dropping at factor 1.0, 10 % of the sequences exempt."},
    {"deepseek_v2_lite",
     "model.num_experts=64 model.num_shared_experts=2 router.top_k=6 router.score_func=softmax" NO_GROUPS
     " router.norm_topk_prob=no router.routed_scaling_factor=1 router.scale_normalized=no router.norm_single=no"
     " balance.alpha_expert=0.001 balance.scope=sequence",
     "DeepSeek-V2-Lite (arXiv 2405.04434): 64 routed + 2 shared experts, top 6, alpha 0.001; hidden 2048, expert width 1408, one device."},
    {"deepseek_v3",
     "model.num_experts=256 model.num_shared_experts=1 router.top_k=8 router.score_func=sigmoid router.group_limit=top2_sum"
     " router.num_groups=8 router.topk_group=4 router.norm_topk_prob=yes router.routed_scaling_factor=2.5 router.scale_normalized=yes"
     " router.norm_single=no router.bias_update_rate=0.001 balance.alpha_expert=0.0001 balance.scope=sequence",
     "DeepSeek-V3 (arXiv 2412.19437): 256 routed + 1 shared experts, top 8 on at most 4 of 8 nodes (64 devices); hidden 7168, expert width 2048.\n"
     "f counts the actual selection; balance.aux_selection = unlimited is the paper's equation 18 to the letter.\n"
     "The balancing bias starts at router.bias_file (or 0) and moves by 0.001 after each training step."},
    {"mixtral",
     "model.num_experts=8 model.num_shared_experts=0 router.top_k=2 router.score_func=softmax_topk" NO_GROUPS
     " router.norm_topk_prob=no router.routed_scaling_factor=1 balance.aux_form=mixtral balance.aux_layers=all balance.alpha_expert=0.02 balance.scope=global",
     "Mixtral 8x7B: 8 experts, top 2, weights are a softmax over the chosen, alpha 0.02; hidden 4096, expert width 14336.\n" REMEMBERED "\n"
     "Its loss (K at balance) is of the tokens of all layers put together, as in Hugging Face's code. Its input jitter\n"
     "is off by default; router.jitter_experts = yes is how it reads one."},
    {"qwen2_moe",
     "model.num_experts=64 model.num_shared_experts=1 router.top_k=8 router.score_func=softmax" NO_GROUPS
     " router.norm_topk_prob=no router.routed_scaling_factor=1 balance.aux_form=mixtral balance.aux_layers=all balance.alpha_expert=0.001 balance.scope=global",
     "Qwen2-MoE 57B-A14B: 64 routed + 1 shared experts, top 8, alpha 0.001; hidden 3584, expert width 2560.\n" REMEMBERED "\n"
     "Left out: the wider shared expert and its own gate. The loss is of all layers together, as for mixtral."},
    {"olmoe",
     "model.num_experts=64 model.num_shared_experts=0 router.top_k=8 router.score_func=softmax" NO_GROUPS
     " router.norm_topk_prob=no router.routed_scaling_factor=1 balance.aux_form=mixtral balance.aux_layers=all balance.alpha_expert=0.01 balance.z_loss=0.001"
     " balance.scope=global",
     "OLMoE 1B-7B: 64 experts, top 8, alpha 0.01, z-loss 0.001; hidden 2048, expert width 1024.\n" REMEMBERED "\n"
     "The loss is of all layers together, as for mixtral."},
    {"switch",
     "model.num_experts=128 model.num_shared_experts=0 model.expert_type=relu router.top_k=1 router.score_func=softmax" NO_GROUPS
     " router.norm_topk_prob=no router.routed_scaling_factor=1 router.jitter=0.01 balance.aux_form=switch balance.alpha_expert=0.01"
     " balance.z_loss=0.001"
     " balance.scope=sequence capacity.policy=sequence capacity.capacity_factor=1.25 capacity.drop=position",
     "Switch-base-128 (arXiv 2101.03961): 128 experts, top 1, alpha 0.01, z-loss 0.001; hidden 768, expert width 3072.\n" REMEMBERED "\n"
     "Loss and capacity (factor 1.25) by sequence as in Hugging Face's code; f counts before dropping, as the paper has it.\n"
     "Input jitter 0.01 in training, of the gate alone, as in the paper. Hugging Face's code does that in bf16; in float32 its\n"
     "product in place reaches the experts too: router.jitter_experts = yes."},
    {"gshard",
     "model.num_experts=128 model.num_shared_experts=0 model.expert_type=relu router.method=gshard router.second_choice=random router.top_k=2"
     " router.score_func=softmax" NO_GROUPS " router.norm_topk_prob=yes router.routed_scaling_factor=1 balance.aux_form=gshard"
     " balance.alpha_expert=0.01 balance.scope=device capacity.policy=expert capacity.capacity_factor=2 capacity.capacity_scope=device"
     " capacity.drop=position capacity.first_choices=yes",
     "GShard (arXiv 2006.16668): 128 experts on 128 devices, top 2, alpha 0.01; hidden 1024, expert width 8192.\n" REMEMBERED "\n"
     "The second expert is kept with probability 2 g2; a device is one of the paper's groups."},
    {"mixlora",
     "model.num_experts=8 model.num_shared_experts=0 model.expert_type=lora model.lora_rank=16 router.top_k=2 router.score_func=softmax" NO_GROUPS
     " router.norm_topk_prob=yes router.routed_scaling_factor=1 balance.aux_form=mixtral balance.aux_layers=all balance.alpha_expert=0.001 balance.scope=global",
     "MixLoRA (arXiv 2404.15159): 8 LoRA experts of rank 16, top 2, normalised weights, alpha 0.001; hidden 4096.\n" REMEMBERED "\n"
     "No z-loss: its public code has one for MixLoRA-switch only. The loss is of all layers together, as for mixtral."},
    {"mixlora_switch",
     "model.num_experts=8 model.num_shared_experts=0 model.expert_type=lora model.lora_rank=16 router.top_k=1 router.score_func=softmax" NO_GROUPS
     " router.norm_topk_prob=no router.routed_scaling_factor=1 balance.aux_form=switch balance.alpha_expert=0.001 balance.z_loss=0.001"
     " balance.scope=global capacity.policy=sequence capacity.expert_capacity=32 capacity.drop=position",
     "MixLoRA-switch (arXiv 2404.15159): 8 LoRA experts of rank 16, top 1, alpha 0.001, z-loss 0.001, 32 tokens of a sequence per expert; hidden\n"
     "4096. " REMEMBERED " Its loss is of the whole batch, f counts before dropping."},
    {"mixlora_dynamic",
     "model.num_experts=8 model.num_shared_experts=0 model.expert_type=lora model.lora_rank=16 router.method=top_p router.top_p=0.8"
     " router.temperature=1 router.temperature_on=probabilities router.score_func=softmax" NO_GROUPS
     " router.norm_topk_prob=no router.routed_scaling_factor=1 balance.aux_form=mixtral balance.aux_layers=all balance.alpha_expert=0.001 balance.scope=global",
     "MixLoRA-dynamic (arXiv 2404.15159): 8 LoRA experts of rank 16, as many as reach a probability of 0.8, alpha 0.001; hidden 4096.\n" REMEMBERED "\n"
     "A temperature, if given, divides the probabilities as in its public code."},
    {"megatron",
     "router.top_k=2 router.score_func=softmax_topk" NO_GROUPS
     " router.norm_topk_prob=no router.routed_scaling_factor=1 balance.alpha_expert=0.01 balance.z_loss=0.001 balance.scope=global balance.aux_selection=unlimited",
     "Megatron-Core's default router: top 2, weights are a softmax over the chosen logits; the loss counts plain top-K. alpha 0.01 and z-loss\n"
     "0.001 are the documentation's example. " REMEMBERED},
    {"deepspeed_top1",
     "router.top_k=1 router.score_func=softmax" NO_GROUPS " router.norm_topk_prob=no router.routed_scaling_factor=1 balance.aux_form=gshard"
     " balance.alpha_expert=0.01 balance.scope=device capacity.policy=expert capacity.capacity_factor=1 capacity.min_capacity=4"
     " capacity.rounding=deepspeed capacity.capacity_scope=device capacity.drop=position",
     "DeepSpeed's top1gating: capacity factor 1.0, at least 4, alpha 0.01. " REMEMBERED "\n"
     "First come, first served: its random token selection (use_rts) is off. RSample noise is left out; its Jitter is router.jitter = 0.01. Both are off by default."},
    {"deepspeed_top2",
     "router.top_k=2 router.score_func=softmax" NO_GROUPS " router.norm_topk_prob=yes router.routed_scaling_factor=1 balance.aux_form=gshard"
     " balance.alpha_expert=0.01 balance.scope=device capacity.policy=expert capacity.capacity_factor=1 capacity.min_capacity=4"
     " capacity.rounding=deepspeed capacity.capacity_scope=device capacity.drop=position capacity.first_choices=yes capacity.renormalize=yes",
     "DeepSpeed's top2gating: capacity factor 1.0, at least 4, first choices before second ones, weights normalised over what is kept, alpha 0.01.\n"
     REMEMBERED " The second choice is the second best; router.method = gshard with second_choice = sampled draws it, as its default does."},
    {"deepspeed_topk",
     "router.top_k=4 router.score_func=softmax" NO_GROUPS " router.norm_topk_prob=yes router.routed_scaling_factor=1 balance.aux_form=deepseek"
     " balance.alpha_expert=0.01 balance.scope=device capacity.policy=expert capacity.capacity_factor=1 capacity.min_capacity=4"
     " capacity.rounding=deepspeed capacity.capacity_scope=device capacity.drop=scores capacity.renormalize=yes",
     "DeepSpeed's topkgating: K of the user (here 4), capacity factor 1.0, at least 4, lowest probabilities dropped, alpha 0.01; its loss is 1 at\n"
     "balance. " REMEMBERED},
    {"tutel",
     "router.top_k=2 router.score_func=softmax" NO_GROUPS " router.norm_topk_prob=yes router.routed_scaling_factor=1 balance.aux_form=gshard"
     " balance.alpha_expert=0.01 balance.importance_of=scores balance.scope=device capacity.policy=expert capacity.capacity_factor=1"
     " capacity.rounding=tutel capacity.capacity_scope=device capacity.drop=position capacity.first_choices=yes",
     "Tutel's top-k gate: top 2, capacity factor 1.0, first choices before second ones, GShard's loss; the coefficient is the user's, here 0.01.\n"
     REMEMBERED " Its other loss, the average of importance and smooth load: router.noise > 0, load_form = tutel, alpha_expert = 0,\n"
     "importance_loss and load_loss at half the coefficient. Batch-prioritised: capacity.drop = batch_priority."},
    {"fastmoe_naive",
     "router.top_k=2 router.score_func=softmax_topk" NO_GROUPS " router.norm_topk_prob=no router.routed_scaling_factor=1",
     "FastMoE's naive gate: top 2, weights are a softmax over the chosen logits, no loss. " REMEMBERED},
    {"fastmoe_gshard",
     "router.method=gshard router.second_choice=random router.top_k=2 router.score_func=softmax_topk" NO_GROUPS
     " router.norm_topk_prob=no router.routed_scaling_factor=1 balance.aux_form=gshard balance.alpha_expert=0.01 balance.scope=device"
     " capacity.policy=expert capacity.capacity_factor=1.2 capacity.rounding=fastmoe capacity.capacity_scope=device capacity.drop=position",
     "FastMoE's GShard gate: top 2, the second kept with probability 2 g2, capacity factor 1.2; the coefficient is the user's, here 0.01.\n" REMEMBERED "\n"
     "Its loss has (experts of one worker)^2 where GShard's has N^2: with W workers it is W^2 times smaller than here. It counts first choices."},
    {"fastmoe_switch",
     "router.top_k=1 router.score_func=softmax" NO_GROUPS " router.norm_topk_prob=no router.routed_scaling_factor=1 router.noise=0.0577"
     " balance.aux_form=switch balance.alpha_expert=0.01 balance.scope=device capacity.policy=expert capacity.capacity_factor=1.2"
     " capacity.rounding=ceil capacity.capacity_scope=device capacity.drop=position",
     "FastMoE's Switch gate: top 1, capacity factor 1.2; the coefficient is the user's, here 0.01. " REMEMBERED "\n"
     "Its noise is uniform within 0.1, here Gaussian of the same variance; its loss counts what is left after dropping, here before."},
};
/* clang-format on */

const int moe_num_presets = sizeof moe_presets / sizeof moe_presets[0];

const moe_preset *moe_preset_find(const char *name) {
    for (int i = 0; i < moe_num_presets; i++) {
        if (strcmp(moe_presets[i].name, name) == 0) {
            return &moe_presets[i];
        }
    }
    return NULL;
}

bool moe_preset_value(const moe_preset *preset, int k, char value[MOE_VALUE_TEXT_MAX]) {
    const char *at = preset->settings;
    while (at != NULL && *at != '\0') {
        const size_t length = strcspn(at, " "), name = strcspn(at, "=");
        MOE_ASSERT(name < length);
        if (moe_key_find_full(at, name) == k) {
            snprintf(value, MOE_VALUE_TEXT_MAX, "%.*s", (int)(length - name - 1), at + name + 1);
            return true;
        }
        at += length + strspn(at + length, " ");
    }
    return false;
}
