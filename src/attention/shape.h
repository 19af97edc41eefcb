/* shape.h: the sizes of an attention layer, and the list of its parameters.
 *
 * Symbols: H hidden size, n heads, d head_dim, d_R rope_dim, r kv_lora_rank, r_q q_lora_rank. A
 * head's key and query are `key` numbers wide, the last `rope` of which are rotated by the token's
 * place; its value is `value` wide.
 *
 *     mha   key = d,         value = d,  kv_heads = num_kv_heads (n, or fewer: GQA; 1: MQA)
 *     mla   key = d + d_R,   value = d,  kv_heads = n, all made from c_KV of r numbers */
#ifndef MOESIM_ATTENTION_SHAPE_H
#define MOESIM_ATTENTION_SHAPE_H

#include <stdbool.h>
#include <stdint.h>

#include "config/config.h"

typedef struct moe_attention_shape {
    bool latent; /* mla */
    bool normed; /* an RMSNorm stands in front (model.norm) */
    bool half;   /* model.rope_order = half */
    int64_t hidden, heads, kv_heads, key, value, rope;
    int64_t kv_rank; /* 0: keys and values are made from the input */
    int64_t q_rank;  /* 0: queries are made from the input */
    double theta;
} moe_attention_shape;

/* Every parameter that an attention layer may have; its name, shape and use:
 * moe_attention_tensor_of.
 */
enum moe_attention_tensor {
    MOE_ATTENTION_NORM,
    MOE_ATTENTION_DQ,
    MOE_ATTENTION_Q_NORM,
    MOE_ATTENTION_Q,
    MOE_ATTENTION_DKV,
    MOE_ATTENTION_KV_NORM,
    MOE_ATTENTION_KR,
    MOE_ATTENTION_K,
    MOE_ATTENTION_V,
    MOE_ATTENTION_O,
    MOE_ATTENTION_TENSORS
};

typedef struct moe_attention_tensor_shape {
    const char *name;      /* "w_q", ... as in the checkpoint */
    bool norm;             /* weights of an RMSNorm: they begin at 1 and do not decay */
    int64_t rows, columns; /* of the matrix W in y = W x; rows 0: the layer has no such tensor */
} moe_attention_tensor_shape;

/* Local, pure. The shape that a resolved configuration asks for. */
moe_attention_shape moe_attention_shape_of(const moe_config *c);

/* Local, pure. */
moe_attention_tensor_shape moe_attention_tensor_of(const moe_attention_shape *s,
                                                   enum moe_attention_tensor tensor);

/* Local, pure. The parameters of one attention layer, 0 with model.attention = none. */
int64_t moe_attention_parameters(const moe_config *c);

#endif
