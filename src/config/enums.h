/* enums.h: the values of the enum keys, by section of the configuration. A value's name in a file
 * is at the same place in the list of names of its key in keys.def; what each value means is said
 * by the key's sentence there (moesim --keys) and in docs/method.md. */
#ifndef MOESIM_CONFIG_ENUMS_H
#define MOESIM_CONFIG_ENUMS_H

/* --- [run] --- */

/* run.gemm: enum moe_gemm_library of base/gemm.h */
enum moe_mode { MOE_MODE_FORWARD, MOE_MODE_TRAIN, MOE_MODE_GENERATE };

/* --- [model] --- */

enum moe_expert_type {
    MOE_EXPERT_SWIGLU,
    MOE_EXPERT_SILU,
    MOE_EXPERT_GELU,
    MOE_EXPERT_RELU,
    MOE_EXPERT_LORA,
    MOE_EXPERT_IDENTITY
};
enum moe_compute { MOE_COMPUTE_FP32, MOE_COMPUTE_BF16 };
enum moe_norm { MOE_NORM_NONE, MOE_NORM_RMSNORM };
enum moe_attention { MOE_ATTENTION_NONE, MOE_ATTENTION_MHA, MOE_ATTENTION_MLA };
enum moe_rope_order { MOE_ROPE_INTERLEAVED, MOE_ROPE_HALF };

/* --- [router] --- */

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
enum moe_noise_form { MOE_NOISE_GAUSSIAN, MOE_NOISE_SOFTPLUS };
enum moe_bias_update { MOE_BIAS_SIGN, MOE_BIAS_PROPORTIONAL };
enum moe_temperature_on { MOE_TEMPERATURE_LOGITS, MOE_TEMPERATURE_PROBABILITIES };
enum moe_second_choice { MOE_SECOND_BEST, MOE_SECOND_RANDOM, MOE_SECOND_SAMPLED };

/* --- [balance] --- */

enum moe_importance_of { MOE_IMPORTANCE_WEIGHTS, MOE_IMPORTANCE_SCORES };
enum moe_load_form { MOE_LOAD_SELECTIONS, MOE_LOAD_TUTEL, MOE_LOAD_SHAZEER };
/* MOE_NUM_SCOPES is their number: every loss is reported in all scopes. */
enum moe_scope { MOE_SCOPE_SEQUENCE, MOE_SCOPE_DEVICE, MOE_SCOPE_GLOBAL, MOE_NUM_SCOPES };
enum moe_comm_count { MOE_COUNT_TOKENS, MOE_COUNT_SELECTIONS };
enum moe_device_p { MOE_DEVICE_P_SUM, MOE_DEVICE_P_MEAN };
enum moe_aux_selection { MOE_AUX_ACTUAL, MOE_AUX_UNLIMITED };
enum moe_aux_form { MOE_AUX_DEEPSEEK, MOE_AUX_SWITCH, MOE_AUX_GSHARD, MOE_AUX_MIXTRAL };
enum moe_aux_layers { MOE_LAYERS_EACH, MOE_LAYERS_ALL };

/* --- [capacity] --- */

enum moe_capacity_policy {
    MOE_CAPACITY_NONE,
    MOE_CAPACITY_DEVICE,
    MOE_CAPACITY_EXPERT,
    MOE_CAPACITY_SEQUENCE
};
enum moe_drop_order { MOE_DROP_PROBS, MOE_DROP_POSITION, MOE_DROP_SCORES, MOE_DROP_BATCH_PRIORITY };
enum moe_overflow { MOE_OVERFLOW_DROP, MOE_OVERFLOW_NEXT_CHOICE };
enum moe_global_batch { MOE_GLOBAL_MICRO_BATCH, MOE_GLOBAL_STEP };
enum moe_capacity_scope { MOE_CAPACITY_GLOBAL, MOE_CAPACITY_PER_DEVICE };
enum moe_rounding {
    MOE_ROUNDING_CEIL,
    MOE_ROUNDING_MEGATRON,
    MOE_ROUNDING_DEEPSPEED,
    MOE_ROUNDING_FASTMOE,
    MOE_ROUNDING_TUTEL
};

/* --- [exchange] --- */

enum moe_exchange_mode { MOE_EXCHANGE_SELECTION, MOE_EXCHANGE_TOKEN, MOE_EXCHANGE_TWO_LEVEL };
enum moe_transport { MOE_TRANSPORT_ALLTOALLV, MOE_TRANSPORT_SHARED, MOE_TRANSPORT_AUTO };
enum moe_algorithm { MOE_ALGORITHM_MPI, MOE_ALGORITHM_WINDOWED };
/* exchange.payload, and exchange.combine_payload without MOE_PAYLOAD_FP8. */
enum moe_payload { MOE_PAYLOAD_FP32, MOE_PAYLOAD_BF16, MOE_PAYLOAD_FP8 };
enum moe_fp8_scale { MOE_FP8_SCALE_FP32, MOE_FP8_SCALE_UE8M0 };
/* What stands around a vector on the wire: exchange/row_format.h. */
enum moe_row_protocol {
    MOE_ROW_BARE,
    MOE_ROW_DEEPEP_LOW_LATENCY,
    MOE_ROW_DEEPEP_NORMAL,
    MOE_ROW_DEEPEP_V2
};

/* --- [placement] --- */

enum moe_placement_policy {
    MOE_PLACEMENT_BLOCK,
    MOE_PLACEMENT_ROUND_ROBIN,
    MOE_PLACEMENT_FILE,
    MOE_PLACEMENT_EPLB,
    MOE_PLACEMENT_EPLB_GLOBAL,
    MOE_PLACEMENT_FLASHLB,
    MOE_PLACEMENT_LPLB,
    MOE_PLACEMENT_LLEP,
    MOE_PLACEMENT_MOONEP,
    MOE_PLACEMENT_EPIC,
    MOE_PLACEMENT_JOINT
};

/* --- [data] --- */

enum moe_padding { MOE_PADDING_COUNTED, MOE_PADDING_DROPPED };
enum moe_source { MOE_SOURCE_SYNTHETIC, MOE_SOURCE_TEXT, MOE_SOURCE_LOGITS, MOE_SOURCE_ROUTING };

/* --- [train] --- */

enum moe_optimizer { MOE_OPTIMIZER_SGD, MOE_OPTIMIZER_ADAMW };
enum moe_schedule { MOE_SCHEDULE_CONSTANT, MOE_SCHEDULE_COSINE };

#endif
