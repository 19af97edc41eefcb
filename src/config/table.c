/* config_table.c: the table of configuration keys. Every row: section, name, type, field, range or
 * names, default, one sentence. */
#include "config/table.h"

#include <string.h>

/* One row a key. */
/* clang-format off */
#define NAMES(...)                      (const char *const[]){__VA_ARGS__, NULL}
#define INT32(s, n, lo, hi, def, text)  {#s, #n, MOE_KEY_INT32, offsetof(moe_config, s.n), lo, hi, NULL, def, text},
#define INT64(s, n, lo, hi, def, text)  {#s, #n, MOE_KEY_INT64, offsetof(moe_config, s.n), lo, hi, NULL, def, text},
#define DOUBLE(s, n, lo, hi, def, text) {#s, #n, MOE_KEY_DOUBLE, offsetof(moe_config, s.n), lo, hi, NULL, def, text},
#define BOOL(s, n, def, text)           {#s, #n, MOE_KEY_BOOL, offsetof(moe_config, s.n), 0, 1, NULL, def, text},
#define ENUM(s, n, names, def, text)    {#s, #n, MOE_KEY_ENUM, offsetof(moe_config, s.n), 0, 0, names, def, text},
#define PATH(s, n, text)                {#s, #n, MOE_KEY_PATH, offsetof(moe_config, s.n), 0, 0, NULL, "", text},
#define PRESET(s, n, text)              {#s, #n, MOE_KEY_PRESET, offsetof(moe_config, s.n), 0, 0, NULL, "", text},

#define MAX_INT 9007199254740992.0   /* 2^53: exact as a double and in JSON */
#define MAX_SIZE 1048576             /* 2^20: experts, widths */

const moe_key moe_keys[] = {
    INT64(run, seed, 0, MAX_INT, "1", "Key of all random numbers; the same seed gives the same run on any number of ranks.")
    INT64(run, steps, 1, 1e12, "1", "Steps to run; recorded logits and routing always have one.")
    ENUM(run, mode, NAMES("forward", "train", "generate"), "forward",
          "What a step does: the forward pass only, training, or generating tokens.")
    INT32(run, threads, 0, 4096, "0", "OpenMP threads of each rank; 0 shares the cores of a host fairly among its ranks.")

    INT32(model, num_layers, 1, 4096, "1", "MoE layers, one after the other, each with its own router.")
    INT32(model, hidden_size, 1, MAX_SIZE, "256", "Width H of a token's vector.")
    INT32(model, num_experts, 1, MAX_SIZE, "64", "Routed experts N (before expert_segmentation).")
    INT32(model, num_shared_experts, 0, 65536, "0", "Shared experts N_s, run for every token with weight 1.")
    INT32(model, moe_intermediate_size, 1, MAX_SIZE, "128", "Width F of an expert (before expert_segmentation).")
    ENUM(model, expert_type, NAMES("swiglu", "silu", "gelu", "relu", "lora", "identity"), "swiglu",
          "An expert's FFN: swiglu has three matrices, silu, gelu and relu two, identity none.")
    DOUBLE(model, lora_alpha, 0, 1e6, "32", "Scale of the adapters of expert_type = lora: their product counts lora_alpha / lora_rank times.")
    INT32(model, lora_rank, 1, 65536, "16", "Rank of the adapters of expert_type = lora.")
    INT32(model, expert_segmentation, 1, 4096, "1",
          "m > 1 cuts each expert into m: mN - N_s routed and mK - N_s chosen experts of width F/m.")
    BOOL(model, residual, "yes", "Whether a layer adds its input to its output; default no with model.load.")
    ENUM(model, norm, NAMES("none", "rmsnorm"), "none",
          "Normalisation in front of a layer; default rmsnorm with several layers or in training, none with model.load.")
    ENUM(model, attention, NAMES("none", "mha", "mla"), "none", "Attention in front of each MoE layer.")
    PATH(model, load, "Folder of .npy weights to use instead of random ones.")

    PRESET(router, preset, "A published system whose settings stand in for keys that are not given.")
    ENUM(router, method, NAMES("topk", "top_p", "switch", "gshard", "sinkhorn", "hash", "random", "round_robin", "expert_choice"),
          "topk", "How experts are chosen; hash, random and round_robin look at no score, with expert_choice experts choose tokens of their device.")
    ENUM(router, score_func, NAMES("softmax", "sigmoid", "sqrtsoftplus", "softmax_topk"), "softmax",
          "From logits to scores; softmax_topk renormalises the weights over the chosen experts.")
    INT32(router, top_k, 1, 65536, "6", "Routed experts K of each token (before expert_segmentation).")
    ENUM(router, group_limit, NAMES("none", "max", "top2_sum", "topk_sum", "quota"), "none",
          "Rule that keeps the topk_group best groups: by best score, sum of the best two or K/M scores, or K/M experts in each.")
    INT32(router, num_groups, 0, MAX_SIZE, "0", "Groups G of neighbouring experts; 0 makes a group of each device.")
    INT32(router, topk_group, 0, MAX_SIZE, "0", "Most groups M a token may reach under a group limit; 0 allows all groups.")
    BOOL(router, norm_topk_prob, "no", "Whether the weights of the chosen experts are divided by their sum.")
    DOUBLE(router, routed_scaling_factor, -1e6, 1e6, "1", "Factor on the weights of the chosen experts.")
    BOOL(router, scale_normalized, "yes", "Whether the factor also applies to normalised weights; DeepSeek-V2's code normalises or scales.")
    BOOL(router, norm_single, "yes", "Whether norm_topk_prob also applies when top_k = 1; DeepSeek's code leaves a single weight alone.")
    DOUBLE(router, gate_scale, 0, 1e6, "1", "Standard deviation of the random logits of vectors of unit variance.")
    DOUBLE(router, noise, 0, 1e6, "0", "Standard deviation of the noise on the logits, in training; for noise_form = softplus, its smallest.")
    ENUM(router, noise_form, NAMES("gaussian", "softplus"), "gaussian",
          "Scale of the noise: router.noise, or softplus(u W_noise) + router.noise with W_noise learned (Shazeer et al.; FastMoE: + 0.01).")
    DOUBLE(router, jitter, 0, 0.999, "0", "Input jitter eps: the gate reads each number times a random factor from 1 - eps to 1 + eps, in training.")
    BOOL(router, jitter_experts, "no", "Whether the experts read the jittered input too (Hugging Face's Mixtral), or only the gate (Switch, Megatron).")
    DOUBLE(router, expert_dropout, 0, 0.99, "0", "Share of the experts disabled at random in each training step.")
    DOUBLE(router, bias_update_rate, 0, 1e6, "0", "Step of the balancing bias after each training step (gamma).")
    ENUM(router, bias_update, NAMES("sign", "proportional"), "sign",
          "How the bias moves: gamma x sign(mean count - count), or gamma x (mean count - count).")
    BOOL(router, bias_centered, "no", "Whether the mean of the changes of the bias is taken off.")
    PATH(router, bias_file, ".npy [N] added to the scores when experts are chosen, not to the weights.")
    DOUBLE(router, top_p, 1e-6, 1, "0.8", "Cumulative score that method = top_p stops at.")
    DOUBLE(router, temperature, 1e-6, 1e6, "1", "Divisor for method = top_p; 1 changes nothing.")
    ENUM(router, temperature_on, NAMES("logits", "probabilities"), "logits",
          "What the temperature divides: logits (the usual sense), or probabilities (MixLoRA's public code; weights grow with it).")
    ENUM(router, second_choice, NAMES("best", "random", "sampled"), "best",
          "For method = gshard: the second best, the same but kept with probability 2g only, or drawn by probability.")
    DOUBLE(router, sinkhorn_tolerance, 1e-12, 1, "0.0001", "Mean change of the experts' factors at which method = sinkhorn stops.")
    INT32(router, sinkhorn_iterations, 1, 1e6, "1000", "Iterations after which method = sinkhorn counts as not converging.")

    DOUBLE(balance, alpha_expert, 0, 1e6, "0", "Coefficient of the expert-level balance loss (alpha 1).")
    DOUBLE(balance, alpha_device, 0, 1e6, "0", "Coefficient of the device-level balance loss (alpha 2).")
    DOUBLE(balance, alpha_comm, 0, 1e6, "0", "Coefficient of the communication balance loss (alpha 3).")
    DOUBLE(balance, z_loss, 0, 1e6, "0", "Coefficient of the router z-loss: the mean square of logsumexp of the logits.")
    DOUBLE(balance, importance_loss, 0, 1e6, "0",
          "Coefficient of the importance loss: the squared variation of the experts' summed weights.")
    ENUM(balance, importance_of, NAMES("weights", "scores"), "weights",
          "What importance sums over tokens: combine weights of the chosen (Shazeer et al.), or all scores (Tutel).")
    DOUBLE(balance, load_loss, 0, 1e6, "0", "Coefficient of the load loss: the squared variation of the experts' smooth load.")
    ENUM(balance, load_form, NAMES("selections", "tutel", "shazeer"), "selections",
          "Load of an expert: selections (no gradient), or a smooth load by the noise: Shazeer et al.'s, or Tutel's.")
    ENUM(balance, scope, NAMES("sequence", "device", "global"), "sequence",
          "Which tokens' averages the losses that count are made of; all three are reported.")
    ENUM(balance, comm_count, NAMES("tokens", "selections"), "tokens",
          "What f'' counts: distinct tokens sent to a device, or (a circulating misreading) selections.")
    BOOL(balance, comm_count_local, "yes", "Whether f'' counts a token that stays on its own device.")
    ENUM(balance, device_p, NAMES("sum", "mean"), "sum", "P' of a device: sum of its experts' P, or (a circulating misreading) their mean.")
    ENUM(balance, aux_selection, NAMES("actual", "unlimited"), "actual",
          "Which selection the losses count: the actual one, or plain top-K without bias and groups.")
    ENUM(balance, aux_form, NAMES("deepseek", "switch", "gshard", "mixtral"), "deepseek",
          "Form of the loss that alpha_expert trains: all choices (1 at balance), first choices (switch, gshard), or mixtral's (K at balance).")
    ENUM(balance, aux_layers, NAMES("each", "all"), "each",
          "For aux_form = mixtral: the loss of each layer, or one of the tokens of all layers put together (Hugging Face's code).")
    INT64(balance, begin_step, 0, 1e12, "0", "Training step before which the coefficients of the losses are 0.")
    INT64(balance, ramp_steps, 0, 1e12, "0", "Steps over which the coefficients then rise to their values.")

    ENUM(capacity, policy, NAMES("none", "device", "expert", "sequence"), "none",
          "What has a capacity, beyond which token-expert pairs are dropped.")
    DOUBLE(capacity, capacity_factor, 0, 1e6, "1", "Capacity as a multiple of the balanced load; 0 is as much as is needed (Tutel).")
    ENUM(capacity, rounding, NAMES("ceil", "megatron", "deepspeed", "fastmoe", "tutel"), "ceil",
          "How the capacity becomes a whole number: upwards, or as a system's own code does it.")
    INT32(capacity, min_capacity, 0, 1e9, "0", "Smallest capacity, whatever the factor (DeepSpeed: 4).")
    ENUM(capacity, drop, NAMES("probs", "position", "scores", "batch_priority"), "probs",
          "Who is dropped first: the lowest weight (of a device: score), the last to come, the lowest score, the token whose best score is lowest (Tutel).")
    BOOL(capacity, first_choices, "no", "Whether first choices take their places before second choices, and so on.")
    ENUM(capacity, overflow, NAMES("drop", "next_choice"), "drop",
          "What happens to an overflowing pair: dropped, or given to the next expert with room.")
    DOUBLE(capacity, exempt_sequences, 0, 1, "0", "Share of the sequences from which nothing is dropped.")
    INT32(capacity, expert_capacity, 0, 1e9, "0",
          "Capacity of an expert in pairs for policy = sequence or expert; 0 derives it from capacity_factor.")
    BOOL(capacity, renormalize, "no", "Whether normalised weights are normalised again over the experts that are left.")
    BOOL(capacity, pad_to_capacity, "no", "Whether buffers are filled up to the capacity; the rows that this wastes are counted.")
    ENUM(capacity, capacity_scope, NAMES("global", "device"), "global",
          "Whether a capacity is of the global batch or of each device's tokens.")

    ENUM(exchange, mode, NAMES("selection", "token", "two_level"), "token",
          "What a row carries: a token to one expert, to one device, or to one node.")
    INT32(exchange, chunks, 1, 1024, "1", "Parts in which a batch is exchanged and computed.")
    ENUM(exchange, transport, NAMES("alltoallv", "shared"), "alltoallv", "How rows travel: MPI_Alltoallv, or windows of shared memory.")
    ENUM(exchange, algorithm, NAMES("mpi", "windowed"), "mpi",
          "Who orders the messages of an exchange: MPI, or moesim with a few in flight.")
    ENUM(exchange, payload, NAMES("fp32", "bf16", "fp8"), "fp32", "Number format of dispatched vectors.")
    ENUM(exchange, combine_payload, NAMES("fp32", "bf16"), "fp32", "Number format of the vectors that come back.")

    INT32(cluster, devices, 0, 65536, "0", "Devices D; 0 is one per rank, a multiple of the ranks folds several onto each.")
    INT32(cluster, devices_per_node, 0, 65536, "0", "Devices of one node; 0 puts all on one node.")
    DOUBLE(cluster, intra_gbps, 1e-3, 1e6, "160", "Bandwidth inside a node in GB/s per device.")
    DOUBLE(cluster, inter_gbps, 1e-3, 1e6, "50", "Bandwidth across nodes in GB/s per device.")
    DOUBLE(cluster, intra_latency_us, 0, 1e9, "2", "Latency of a message inside a node in microseconds.")
    DOUBLE(cluster, inter_latency_us, 0, 1e9, "5", "Latency of a message across nodes in microseconds.")
    DOUBLE(cluster, device_tflops, 1e-6, 1e9, "100", "Arithmetic of a device in TFLOP/s.")
    DOUBLE(cluster, efficiency, 1e-6, 1, "0.5", "Share of device_tflops that experts reach.")

    ENUM(placement, policy, NAMES("block", "round_robin", "file", "eplb"), "block",
          "Where experts live: in blocks of N/D, dealt out, from a file, or balanced with replicas.")
    PATH(placement, file, "Placement to read for policy = file.")
    INT32(placement, redundant_experts, 0, MAX_SIZE, "0", "Replicas of busy experts.")
    INT32(placement, rebalance_every, 0, 1e9, "0", "Steps between two new placements; 0 is never.")

    ENUM(data, source, NAMES("synthetic", "text", "logits", "routing"), "synthetic",
          "Where tokens come from: random topics, text, or recorded logits or routing.")
    PATH(data, path, "Text file or folder (several, with ':' between them, are several domains), or .npy of logits [T,N] or [layers,T,N], or of routing [T,K].")
    PATH(data, mask, ".npy [T] or [B,S] for recorded data; 0 marks padding.")
    PATH(data, weights, ".npy [T,K] of combine weights beside a recorded routing.")
    PATH(data, scores, ".npy [T,N] of scores beside a recorded routing.")
    INT64(data, tokens_per_device, 1, 1e12, "512", "Tokens of each device and step, for synthetic and text.")
    INT64(data, sequence_length, 0, 1e12, "128", "Tokens of a sequence; the last may be shorter; 0 makes one sequence of the batch.")
    DOUBLE(data, skew, 0, 100, "1", "Zipf exponent of the topics' popularity; 0 makes all topics alike.")
    INT32(data, num_topics, 1, MAX_SIZE, "64", "Topics that synthetic tokens are about.")
    DOUBLE(data, topic_strength, 0, 1, "0.5", "Share of a token's variance that comes from its topic.")
    DOUBLE(data, topic_persistence, 0, 1, "0.5", "Probability that a token has the topic of its sequence.")

    ENUM(train, optimizer, NAMES("sgd", "adamw"), "adamw", "How weights are updated.")
    DOUBLE(train, learning_rate, 0, 1e6, "0.003", "Step size after warm-up.")
    INT64(train, warmup_steps, 0, 1e12, "0", "Steps in which the step size rises from 0.")
    ENUM(train, schedule, NAMES("constant", "cosine"), "constant", "Course of the step size after warm-up.")
    DOUBLE(train, beta1, 0, 0.9999999, "0.9", "Decay of AdamW's mean of the gradient.")
    DOUBLE(train, beta2, 0, 0.9999999, "0.999", "Decay of AdamW's mean of the squared gradient.")
    DOUBLE(train, epsilon, 1e-30, 1, "1e-8", "What AdamW adds to the root of the mean squared gradient.")
    DOUBLE(train, weight_decay, 0, 1e6, "0", "Decay of the weights, apart from the gradient.")
    DOUBLE(train, clip_norm, 0, 1e6, "0", "Largest norm of the gradient; 0 does not clip.")
    INT32(train, accumulate, 1, 1e6, "1", "Micro-batches of one update.")
    INT32(train, context, 1, 4096, "8", "Bytes of text that a token's vector is made of, its own included.")
    INT64(train, validation_every, 0, 1e12, "0", "Steps between two validations; 0 is never.")
    INT32(train, validation_batches, 1, 1e6, "4", "Global batches of a validation.")
    DOUBLE(train, validation_share, 0.001, 0.9, "0.1", "Share of a text that is held out for validation: the end of each device's part.")
    BOOL(train, specialization, "no", "Whether specialisation is measured after training: losses without each token's best experts, load by domain.")
    BOOL(train, recompute, "no", "Whether backward computes the experts' activations again instead of keeping them.")
    INT64(train, checkpoint_every, 0, 1e12, "0", "Steps between two checkpoints; 0 is never.")

    BOOL(output, routing, "no", "Whether topk_idx.npy, topk_weight.npy and kept.npy are written (of the last step).")
    BOOL(output, tensors, "no", "Whether y.npy, logits.npy and the gradients are written (of the last step; mode forward).")
    BOOL(output, timeline, "yes", "Whether timeline.json is written: when each rank did what in the last step (Chrome trace events).")
    INT64(output, every, 1, 1e12, "1", "Steps between two lines of the table on the screen; metrics.jsonl has every step.")
};
/* clang-format on */

const int moe_num_keys = sizeof moe_keys / sizeof moe_keys[0];
_Static_assert(sizeof moe_keys / sizeof moe_keys[0] <= MOE_MAX_KEYS,
               "moe_config.given has no room for another key");

int moe_key_find(const char *section, const char *name) {
    for (int k = 0; k < moe_num_keys; k++) {
        if (strcmp(moe_keys[k].section, section) == 0 && strcmp(moe_keys[k].name, name) == 0) {
            return k;
        }
    }
    return -1;
}

int moe_key_find_full(const char *full, size_t length) {
    for (int k = 0; k < moe_num_keys; k++) {
        const size_t section = strlen(moe_keys[k].section), name = strlen(moe_keys[k].name);
        if (length == section + 1 + name && memcmp(full, moe_keys[k].section, section) == 0 &&
            full[section] == '.' && memcmp(full + section + 1, moe_keys[k].name, name) == 0) {
            return k;
        }
    }
    return -1;
}

bool moe_key_section_known(const char *section) {
    for (int k = 0; k < moe_num_keys; k++) {
        if (strcmp(moe_keys[k].section, section) == 0) {
            return true;
        }
    }
    return false;
}

const char *moe_key_enum_name(int k, int value) {
    const char *const *names = moe_keys[k].names;
    int count = 0;
    while (names != NULL && names[count] != NULL) {
        count++;
    }
    return value >= 0 && value < count ? names[value] : NULL;
}
