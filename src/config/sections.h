/* sections.h: the configuration of a run as a struct, with one part for each section of the file.
 *
 * What a field means, and which values it may have, stands in the row of its key in keys.def; a
 * comment here says only what that sentence does not. config.h has the functions. */
#ifndef MOESIM_CONFIG_SECTIONS_H
#define MOESIM_CONFIG_SECTIONS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/gemm.h"
#include "config/enums.h"
#include "config/keys.h"

enum { MOE_PATH_MAX = 1024, MOE_NAME_MAX = 64 }; /* bytes, the final zero included */

/* --- the sections --- */

typedef struct moe_run_config { /* [run] */
    int64_t seed;
    int64_t steps;
    enum moe_mode mode;
    int32_t threads;
    enum moe_gemm_library gemm;
} moe_run_config;

typedef struct moe_model_config {  /* [model] */
    int32_t num_layers;            /* all of them */
    int32_t first_dense_layers;    /* of these, the first, which have no experts */
    int32_t intermediate_size;     /* width of their FFN; 0 where there are none */
    int32_t hidden_size;           /* H */
    int32_t num_experts;           /* N, without the shared experts */
    int32_t num_shared_experts;    /* N_s */
    int32_t moe_intermediate_size; /* F */
    int32_t expert_segmentation;   /* 1 once resolved: what it did is in moe_config.segmented */
    enum moe_expert_type expert_type;
    enum moe_compute compute;
    double lora_alpha;
    int32_t lora_rank;
    bool residual;
    enum moe_norm norm;
    enum moe_attention attention;
    int32_t num_heads;
    int32_t num_kv_heads;
    int32_t head_dim;
    int32_t rope_dim;
    double rope_theta;
    enum moe_rope_order rope_order;
    int32_t kv_lora_rank;
    int32_t q_lora_rank;
    char load[MOE_PATH_MAX];
} moe_model_config;

typedef struct moe_router_config { /* [router] */
    char preset[MOE_NAME_MAX];
    enum moe_router_method method;
    enum moe_score_func score_func;
    int32_t top_k; /* K */
    enum moe_group_limit group_limit;
    int32_t num_groups; /* G */
    int32_t topk_group; /* M */
    bool norm_topk_prob;
    double routed_scaling_factor;
    bool scale_normalized; /* no: DeepSeek-V2's code, which normalises or scales, never both */
    bool norm_single;      /* no: DeepSeek's code, which does not normalise when top_k = 1 */
    double gate_scale;
    double noise;
    enum moe_noise_form noise_form;
    double jitter;
    bool jitter_experts;
    double expert_dropout;
    double bias_update_rate;
    enum moe_bias_update bias_update;
    bool bias_centered;
    char bias_file[MOE_PATH_MAX];
    double top_p;
    double temperature;
    enum moe_temperature_on temperature_on;
    enum moe_second_choice second_choice;
    double sinkhorn_tolerance;
    int32_t sinkhorn_iterations;
} moe_router_config;

typedef struct moe_balance_config { /* [balance] */
    double alpha_expert;
    double alpha_device;
    double alpha_comm;
    double z_loss;
    double importance_loss;
    double load_loss;
    enum moe_importance_of importance_of;
    enum moe_load_form load_form;
    enum moe_scope scope;
    enum moe_global_batch global_batch;
    enum moe_comm_count comm_count;
    bool comm_count_local;
    enum moe_device_p device_p;
    enum moe_aux_selection aux_selection;
    enum moe_aux_form aux_form;
    enum moe_aux_layers aux_layers;
    int64_t begin_step; /* the coefficients are 0 before this step, */
    int64_t ramp_steps; /* and then rise linearly over so many steps */
} moe_balance_config;

typedef struct moe_capacity_config { /* [capacity] */
    enum moe_capacity_policy policy;
    double capacity_factor;
    enum moe_rounding rounding;
    int32_t min_capacity;
    int32_t expert_capacity;
    enum moe_capacity_scope capacity_scope;
    enum moe_drop_order drop;
    enum moe_overflow overflow;
    double exempt_sequences;
    bool first_choices;
    bool renormalize;
    bool pad_to_capacity;
} moe_capacity_config;

typedef struct moe_exchange_config { /* [exchange] */
    enum moe_exchange_mode mode;
    bool node_sum; /* of mode two_level */
    int32_t chunks;
    enum moe_transport transport;
    enum moe_algorithm algorithm;
    enum moe_payload payload;
    enum moe_payload combine_payload;
    enum moe_fp8_scale fp8_scale;
    enum moe_row_protocol row_protocol;
} moe_exchange_config;

typedef struct moe_cluster_config { /* [cluster] */
    int32_t devices;                /* D */
    int32_t devices_per_node;
    char file[MOE_PATH_MAX];
    double intra_gbps; /* GB/s of a device, inside a node */
    double inter_gbps; /* GB/s of a device, across nodes */
    double link_efficiency;
    double intra_latency_us;
    double inter_latency_us;
    double exchange_us;
    double device_tflops;
    double efficiency;
    double gemm_half_rows;
    double memory_gbps;
    double memory_efficiency;
    double launch_us;
    double router_ns;
    double price_per_hour;
    int32_t model_hidden_size;
    int32_t model_intermediate_size;
    int32_t model_layers;
} moe_cluster_config;

typedef struct moe_placement_config { /* [placement] */
    enum moe_placement_policy policy;
    char file[MOE_PATH_MAX];
    int32_t redundant_experts;
    char load[MOE_PATH_MAX];
    int64_t fit;
    int64_t score;
    int32_t rebalance_every;
    int64_t window;
    double hysteresis;
} moe_placement_config;

typedef struct moe_data_config { /* [data] */
    enum moe_source source;
    char path[MOE_PATH_MAX];
    char mask[MOE_PATH_MAX];
    enum moe_padding padding;
    char boundaries[MOE_PATH_MAX];
    char weights[MOE_PATH_MAX];
    char scores[MOE_PATH_MAX];
    int64_t tokens_per_device;
    int64_t sequence_length;
    double skew;
    int32_t num_topics;
    double drift;
    double topic_strength;
    double topic_persistence;
} moe_data_config;

typedef struct moe_train_config { /* [train] */
    enum moe_optimizer optimizer;
    double learning_rate;
    int64_t warmup_steps;
    enum moe_schedule schedule;
    double beta1; /* of AdamW, as are beta2 and epsilon */
    double beta2;
    double epsilon;
    double weight_decay;
    double clip_norm;
    int32_t accumulate;
    int32_t context;
    int64_t validation_every;
    int32_t validation_batches;
    double validation_share;
    int64_t checkpoint_every;
    bool save_final;
    bool recompute;
    bool specialization;
} moe_train_config;

typedef struct moe_generate_config { /* [generate] */
    char run[MOE_PATH_MAX];
    char prompt[MOE_PATH_MAX]; /* with its escapes */
    char prompts[MOE_PATH_MAX];
    int64_t max_new_tokens;
    double temperature;
    int32_t sequences_per_device;
} moe_generate_config;

typedef struct moe_output_config { /* [output] */
    bool routing;
    bool tensors;
    bool timeline;
    int64_t every;
} moe_output_config;

/* --- the whole --- */

/* Where the value of a key came from. A number above 0 is a line of the file. */
enum {
    MOE_PLACE_DEFAULT = 0,
    MOE_PLACE_SET = -1,
    MOE_PLACE_PRESET = -2,
    MOE_PLACE_CLUSTER = -3 /* the file cluster.file */
};

typedef struct moe_config_hosts {
    int32_t count; /* 0: one */
    bool unequal;  /* they have different numbers of ranks */
    bool mixed;    /* the ranks of a host do not follow each other */
} moe_config_hosts;

typedef struct moe_config {
    char name[MOE_NAME_MAX]; /* of the file, without its folder and .ini */
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
    moe_generate_config generate;
    moe_output_config output;

    char file[MOE_PATH_MAX];     /* the file's name as given to moe_config_parse, for messages */
    int32_t place[MOE_NUM_KEYS]; /* where the value of each key came from */
    uint8_t given[MOE_NUM_KEYS]; /* 1: the key came from the file or from --set */

    bool compares_placements; /* set before resolving by --placements, which can do what a run
                                 cannot do yet: see moe_check_available */

    /* Set before resolving: the hosts that the ranks are on, which are the nodes where
     * cluster.devices_per_node = 0. Without them all ranks are on one host. */
    moe_config_hosts hosts;

    /* The rest is derived by moe_config_resolve and has no key. */
    int32_t ranks;           /* 0 until resolved */
    int32_t comm_limit;      /* M of f'' (docs/method.md section 2): a token reaches at most
                                min(top_k, comm_limit) devices */
    bool no_room_to_share;   /* set when a run starts: the folder for shared memory is too small for
                                transport = auto */
    bool top_k_is_recorded;  /* router.top_k is not known before the recorded routing is read */
    bool steps_are_recorded; /* run.steps is not known before the recording is read */
    struct {
        int32_t parts; /* model.expert_segmentation; 1: nothing was cut */
        int32_t num_experts, top_k, moe_intermediate_size; /* as they were before the cut */
    } segmented;
} moe_config;

/* Local. Layers with experts: what results, placements and recordings call layers. */
static inline int32_t moe_config_moe_layers(const moe_config *c) {
    return c->model.num_layers - c->model.first_dense_layers;
}

/* Local. True when the routing is recorded (data.source = routing) and not computed. */
static inline bool moe_config_recorded(const moe_config *c) {
    return c->data.source == MOE_SOURCE_ROUTING;
}

/* Local. True when prompts are continued. */
static inline bool moe_config_generates(const moe_config *c) {
    return c->run.mode == MOE_MODE_GENERATE;
}

/* Local. Whether ranks of a host send rows through shared memory. Chunks need messages that travel
 * by themselves, which `auto` knows. */
static inline bool moe_config_shares_memory(const moe_config *c) {
    return c->exchange.transport == MOE_TRANSPORT_SHARED ||
           (c->exchange.transport == MOE_TRANSPORT_AUTO && c->exchange.chunks == 1 &&
            !c->no_room_to_share);
}

/* Local. Slots of a device: those of its share of the experts, and of the redundant ones, which
 * --placements asks the balancers about and no run of its own needs. */
static inline int32_t moe_config_slots_per_device(const moe_config *c) {
    const int32_t redundant = c->compares_placements ? 0 : c->placement.redundant_experts;
    return (c->model.num_experts + redundant) / c->cluster.devices;
}

/* Local. True when a run copies experts to other devices for one batch. */
static inline bool moe_config_copies_for_batches(const moe_config *c) {
    return !c->compares_placements && (c->placement.policy == MOE_PLACEMENT_LLEP ||
                                       c->placement.policy == MOE_PLACEMENT_MOONEP);
}

/* Local. True when a run decides in every batch how much each replica serves. */
static inline bool moe_config_splits_batches(const moe_config *c) {
    return moe_config_copies_for_batches(c) ||
           (!c->compares_placements && c->placement.policy == MOE_PLACEMENT_LPLB);
}

/* Local. True when a run places experts by their load between steps, and may move them. */
static inline bool moe_config_places_by_load(const moe_config *c) {
    return !c->compares_placements && c->placement.policy >= MOE_PLACEMENT_EPLB &&
           !moe_config_copies_for_batches(c);
}

/* Local. True when the experts live in contiguous blocks, each in one place: then a group of
 * experts that is as large as a device is a device. */
static inline bool moe_config_in_blocks(const moe_config *c) {
    return c->compares_placements ||
           (c->placement.policy == MOE_PLACEMENT_BLOCK && c->placement.redundant_experts == 0);
}

/* Whether a group of experts is what one device holds, so that a limit on groups is one on devices:
 * as many groups as devices, and the experts in blocks. */
static inline bool moe_config_groups_are_devices(const moe_config *c) {
    return c->router.num_groups == c->cluster.devices && moe_config_in_blocks(c);
}

/* Local. True when --placements compares on loads from a file, without tokens. */
static inline bool moe_config_has_loads_only(const moe_config *c) {
    return c->compares_placements && c->placement.load[0] != '\0';
}

/* Local. True when the router looks at no score when it chooses experts. */
static inline bool moe_config_ignores_scores(const moe_config *c) {
    return c->router.method == MOE_METHOD_HASH || c->router.method == MOE_METHOD_RANDOM ||
           c->router.method == MOE_METHOD_ROUND_ROBIN;
}

#endif
