/* config.h: the configuration: one table of keys drives parsing, validation, --keys, the resolved
 * echo and the documentation. Layer 0 (base).
 *
 * A configuration goes through three steps: defaults -> file, then --set (moe_config_parse,
 * moe_config_set) -> moe_config_resolve for a number of ranks (presets supply what was not given,
 * zeros become numbers, combinations are validated). All pure: bytes in, struct out, so every rank
 * parses the same bytes and gets the same answer. */
#ifndef MOESIM_CONFIG_CONFIG_H
#define MOESIM_CONFIG_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"

enum { MOE_PATH_MAX = 1024, MOE_NAME_MAX = 64, MOE_MAX_KEYS = 256 };

enum {
    MOE_PLACE_DEFAULT = 0,
    MOE_PLACE_SET = -1,
    MOE_PLACE_PRESET = -2
}; /* where a key's value came from; > 0: line of the file */

enum moe_mode { MOE_MODE_FORWARD, MOE_MODE_TRAIN, MOE_MODE_GENERATE };
enum moe_expert_type {
    MOE_EXPERT_SWIGLU,
    MOE_EXPERT_SILU,
    MOE_EXPERT_GELU,
    MOE_EXPERT_RELU,
    MOE_EXPERT_LORA,
    MOE_EXPERT_IDENTITY
};
enum moe_norm { MOE_NORM_NONE, MOE_NORM_RMSNORM };
enum moe_attention { MOE_ATTENTION_NONE, MOE_ATTENTION_MHA, MOE_ATTENTION_MLA };
enum moe_score_func {
    MOE_SCORE_SOFTMAX,
    MOE_SCORE_SIGMOID,
    MOE_SCORE_SQRTSOFTPLUS,
    MOE_SCORE_SOFTMAX_TOPK
};
enum moe_group_limit {
    MOE_GROUP_NONE,
    MOE_GROUP_MAX,
    MOE_GROUP_TOP2_SUM,
    MOE_GROUP_TOPK_SUM,
    MOE_GROUP_QUOTA
};
enum moe_router_method {
    MOE_METHOD_TOPK,
    MOE_METHOD_TOP_P,
    MOE_METHOD_SWITCH,
    MOE_METHOD_GSHARD,
    MOE_METHOD_SINKHORN,
    MOE_METHOD_HASH,
    MOE_METHOD_RANDOM,
    MOE_METHOD_ROUND_ROBIN,
    MOE_METHOD_EXPERT_CHOICE
};
enum moe_temperature_on { MOE_TEMPERATURE_LOGITS, MOE_TEMPERATURE_PROBABILITIES };
enum moe_second_choice { MOE_SECOND_BEST, MOE_SECOND_RANDOM, MOE_SECOND_SAMPLED };
enum moe_importance_of { MOE_IMPORTANCE_WEIGHTS, MOE_IMPORTANCE_SCORES };
enum moe_load_form { MOE_LOAD_SELECTIONS, MOE_LOAD_TUTEL, MOE_LOAD_SHAZEER };
enum moe_noise_form { MOE_NOISE_GAUSSIAN, MOE_NOISE_SOFTPLUS };
enum moe_scope { MOE_SCOPE_SEQUENCE, MOE_SCOPE_DEVICE, MOE_SCOPE_GLOBAL, MOE_NUM_SCOPES };
enum moe_comm_count { MOE_COUNT_TOKENS, MOE_COUNT_SELECTIONS };
enum moe_device_p { MOE_DEVICE_P_SUM, MOE_DEVICE_P_MEAN };
enum moe_aux_selection { MOE_AUX_ACTUAL, MOE_AUX_UNLIMITED };
enum moe_capacity_policy {
    MOE_CAPACITY_NONE,
    MOE_CAPACITY_DEVICE,
    MOE_CAPACITY_EXPERT,
    MOE_CAPACITY_SEQUENCE
};
enum moe_exchange_mode { MOE_EXCHANGE_SELECTION, MOE_EXCHANGE_TOKEN, MOE_EXCHANGE_TWO_LEVEL };
enum moe_payload { MOE_PAYLOAD_FP32, MOE_PAYLOAD_BF16, MOE_PAYLOAD_FP8 };
enum moe_aux_form { MOE_AUX_DEEPSEEK, MOE_AUX_SWITCH, MOE_AUX_GSHARD, MOE_AUX_MIXTRAL };
enum moe_aux_layers { MOE_LAYERS_EACH, MOE_LAYERS_ALL };
enum moe_drop_order { MOE_DROP_PROBS, MOE_DROP_POSITION, MOE_DROP_SCORES, MOE_DROP_BATCH_PRIORITY };
enum moe_rounding {
    MOE_ROUNDING_CEIL,
    MOE_ROUNDING_MEGATRON,
    MOE_ROUNDING_DEEPSPEED,
    MOE_ROUNDING_FASTMOE,
    MOE_ROUNDING_TUTEL
};
enum moe_overflow { MOE_OVERFLOW_DROP, MOE_OVERFLOW_NEXT_CHOICE };
enum moe_capacity_scope { MOE_CAPACITY_GLOBAL, MOE_CAPACITY_PER_DEVICE };
enum moe_transport { MOE_TRANSPORT_ALLTOALLV, MOE_TRANSPORT_SHARED };
enum moe_algorithm { MOE_ALGORITHM_MPI, MOE_ALGORITHM_WINDOWED };
enum moe_placement_policy {
    MOE_PLACEMENT_BLOCK,
    MOE_PLACEMENT_ROUND_ROBIN,
    MOE_PLACEMENT_FILE,
    MOE_PLACEMENT_EPLB
};
enum moe_optimizer { MOE_OPTIMIZER_SGD, MOE_OPTIMIZER_ADAMW };
enum moe_bias_update { MOE_BIAS_SIGN, MOE_BIAS_PROPORTIONAL };
enum moe_schedule { MOE_SCHEDULE_CONSTANT, MOE_SCHEDULE_COSINE };
enum moe_source { MOE_SOURCE_SYNTHETIC, MOE_SOURCE_TEXT, MOE_SOURCE_LOGITS, MOE_SOURCE_ROUTING };

typedef struct moe_run_config { /* [run] */
    int64_t seed, steps;
    enum moe_mode mode;
    int32_t threads;
} moe_run_config;

typedef struct moe_model_config { /* [model] */
    double lora_alpha;
    int32_t num_layers, hidden_size, num_experts, num_shared_experts, moe_intermediate_size,
        lora_rank, expert_segmentation;
    enum moe_expert_type expert_type;
    bool residual;
    enum moe_norm norm;
    enum moe_attention attention;
    char load[MOE_PATH_MAX];
} moe_model_config;

typedef struct moe_router_config { /* [router] */
    char preset[MOE_NAME_MAX];
    enum moe_router_method method;
    enum moe_score_func score_func;
    int32_t top_k;
    enum moe_group_limit group_limit;
    int32_t num_groups, topk_group;
    bool norm_topk_prob;
    double routed_scaling_factor;
    bool scale_normalized; /* router.scale_normalized: no = DeepSeek-V2's own code, which
                              normalises OR scales */
    bool norm_single;      /* router.norm_single: no = DeepSeek's own code, which does not normalise
                              when top_k = 1 */
    double gate_scale;     /* router.gate_scale: standard deviation of keyed random logits for
                              unit-variance x */
    double noise, jitter, expert_dropout, bias_update_rate;
    enum moe_noise_form noise_form;
    bool jitter_experts;
    enum moe_bias_update bias_update;
    bool bias_centered;
    double top_p, temperature;
    enum moe_temperature_on temperature_on;
    enum moe_second_choice second_choice;
    double sinkhorn_tolerance;
    int32_t sinkhorn_iterations;
    char bias_file[MOE_PATH_MAX];
} moe_router_config;

typedef struct moe_balance_config { /* [balance] */
    double alpha_expert, alpha_device, alpha_comm, z_loss, importance_loss, load_loss;
    enum moe_importance_of importance_of;
    enum moe_load_form load_form;
    enum moe_scope scope;
    enum moe_comm_count comm_count;
    enum moe_device_p device_p;
    bool comm_count_local;
    enum moe_aux_selection aux_selection;
    enum moe_aux_form aux_form;
    enum moe_aux_layers aux_layers;
    int64_t begin_step, ramp_steps; /* schedule of the coefficients: 0 before begin_step, then a
                                       linear ramp */
} moe_balance_config;

typedef struct moe_capacity_config { /* [capacity] */
    enum moe_capacity_policy policy;
    double capacity_factor;
    enum moe_drop_order drop;
    enum moe_overflow overflow;
    double exempt_sequences;
    int32_t expert_capacity, min_capacity;
    enum moe_capacity_scope capacity_scope;
    enum moe_rounding rounding;
    bool first_choices, renormalize, pad_to_capacity;
} moe_capacity_config;

typedef struct moe_exchange_config { /* [exchange] */
    enum moe_exchange_mode mode;
    int32_t chunks;
    enum moe_transport transport;
    enum moe_algorithm algorithm;
    enum moe_payload payload;
    enum moe_payload combine_payload;
} moe_exchange_config;

typedef struct moe_cluster_config { /* [cluster] */
    int32_t devices, devices_per_node;
    double intra_gbps, inter_gbps, intra_latency_us, inter_latency_us, device_tflops, efficiency;
} moe_cluster_config;

typedef struct moe_placement_config { /* [placement] */
    enum moe_placement_policy policy;
    char file[MOE_PATH_MAX];
    int32_t redundant_experts, rebalance_every;
} moe_placement_config;

typedef struct moe_data_config { /* [data] */
    enum moe_source source;
    char path[MOE_PATH_MAX], mask[MOE_PATH_MAX], weights[MOE_PATH_MAX], scores[MOE_PATH_MAX];
    int64_t tokens_per_device, sequence_length;
    double skew; /* Zipf exponent of topic popularity; 0 = all topics alike */
    int32_t num_topics;
    double topic_strength;    /* share of a token's vector (by variance) that comes from its topic,
                                 0 .. 1 */
    double topic_persistence; /* probability that a token has its sequence's topic */
} moe_data_config;

typedef struct moe_train_config { /* [train] */
    enum moe_optimizer optimizer;
    double learning_rate;
    int64_t warmup_steps;
    enum moe_schedule schedule;
    double weight_decay, clip_norm;
    int32_t accumulate, context;
    int64_t validation_every, checkpoint_every;
    double beta1, beta2, epsilon; /* AdamW */
    int32_t validation_batches;
    bool recompute;
    double validation_share; /* share of every device's part of every domain of a text that is
                                held out */
    bool specialization;
} moe_train_config;

typedef struct moe_output_config { /* [output] */
    bool routing, tensors, timeline;
    int64_t every;
} moe_output_config;

typedef struct moe_config {
    char name[MOE_NAME_MAX]; /* configuration's name: the file's, without folder and .ini */
    moe_run_config run;
    moe_model_config model;
    moe_router_config router;
    moe_balance_config balance;
    moe_capacity_config capacity;
    moe_exchange_config exchange;
    moe_cluster_config cluster;
    moe_placement_config placement;
    moe_data_config data;
    moe_train_config train;
    moe_output_config output;

    char file[MOE_PATH_MAX];     /* file_name of moe_config_parse, for messages */
    int32_t place[MOE_MAX_KEYS]; /* where the value of key k of the table came from */
    uint8_t given[MOE_MAX_KEYS]; /* given[k] = 1: key k of the table came from the file or --set */

    /* derived by moe_config_resolve, not keys */
    int32_t ranks;      /* 0 until resolved */
    int32_t comm_limit; /* M in f'' (method.md, 2); a token reaches at most min(top_k, comm_limit)
                           devices */
    struct { /* what expert_segmentation was derived from; parts = 1: nothing was derived */
        int32_t parts, num_experts, top_k, moe_intermediate_size;
    } segmented;
} moe_config;

/* Local. Is the routing recorded (data.source = routing), not computed? */
static inline bool moe_config_recorded(const moe_config *c) {
    return c->data.source == MOE_SOURCE_ROUTING;
}

/* Local. Fills in every default. */
void moe_config_defaults(moe_config *c);

/* Local, pure (fuzzed). Parses `length` bytes of INI text on top of *c. file_name appears in
 * messages as "file:line". Refuses unknown sections and keys (the nearest known one is named), bad
 * values, values out of range, keys given twice, lines too long. */
int moe_config_parse(
    moe_config *c, const char *bytes, int64_t length, const char *file_name, moe_status *st);

/* Local. One "section.key=value" of the command line. It wins over the file; given again, the last
 * one wins. */
int moe_config_set(moe_config *c, const char *assignment, moe_status *st);

/* Local. True when the key came from the file or --set (not from a default or a preset), e.g.
 * moe_config_given(c, "router.top_k"). */
bool moe_config_given(const moe_config *c, const char *key);

/* Local. Makes the configuration complete for this number of ranks: applies the preset to keys not
 * given, derives segmentation, devices, num_groups, topk_group, devices_per_node, comm_limit, and
 * validates combinations (each sentence names the key, its place and value, and what is allowed).
 * Features that do not exist yet are refused here with a sentence that says so. Called once per
 * configuration. */
int moe_config_resolve(moe_config *c, int32_t ranks, moe_status *st);

/* Local. For a resolved configuration whose recorded routing has k experts per token: takes k over
 * as top_k when router.top_k was not given, else demands equality; checks the combination again and
 * derives comm_limit from it. */
int moe_config_recorded_top_k(moe_config *c, int32_t k, moe_status *st);

/* Local. The most experts that one token of a resolved configuration may have: top_k, or all where
 * experts choose tokens. */
int32_t moe_config_most_experts(const moe_config *c);

/* Local. Prints the resolved configuration as INI; running it again gives the same results. Keys
 * that differ from their preset are marked. */
void moe_config_print(const moe_config *c, FILE *out);
/* Local. The table for --keys, by section: name, default, type or range, one sentence. */
void moe_config_print_keys(FILE *out);

/* Local. The name of an enum value of key "section.key" (for reports), e.g.
 * moe_config_enum_name("router.score_func", MOE_SCORE_SIGMOID) = "sigmoid". */
const char *moe_config_enum_name(const char *key, int value);

#endif
