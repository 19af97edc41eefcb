/* shape.c: the sizes of an attention layer. */
#include "attention/shape.h"

#include "base/status.h"

moe_attention_shape moe_attention_shape_of(const moe_config *c) {
    const moe_model_config *m = &c->model;
    const bool latent = m->attention == MOE_ATTENTION_MLA;
    const int64_t fewer = m->num_kv_heads > 0 ? m->num_kv_heads : m->num_heads;
    return (moe_attention_shape){.latent = latent,
                                 .normed = m->norm == MOE_NORM_RMSNORM,
                                 .half = m->rope_order == MOE_ROPE_HALF,
                                 .hidden = m->hidden_size,
                                 .heads = m->num_heads,
                                 .kv_heads = latent ? m->num_heads : fewer,
                                 .key = m->head_dim + (latent ? m->rope_dim : 0),
                                 .value = m->head_dim,
                                 .rope = m->rope_dim,
                                 .kv_rank = latent ? m->kv_lora_rank : 0,
                                 .q_rank = latent ? m->q_lora_rank : 0,
                                 .theta = m->rope_theta};
}

moe_attention_tensor_shape moe_attention_tensor_of(const moe_attention_shape *s,
                                                   enum moe_attention_tensor tensor) {
    const int64_t own_key = s->latent ? s->key - s->rope : s->key; /* the rest all heads share */
    const int64_t from = s->latent ? s->kv_rank : s->hidden;
    switch (tensor) {
    case MOE_ATTENTION_NORM:
        return (moe_attention_tensor_shape){"norm", true, s->normed ? 1 : 0, s->hidden};
    case MOE_ATTENTION_DQ:
        return (moe_attention_tensor_shape){"w_dq", false, s->q_rank, s->hidden};
    case MOE_ATTENTION_Q_NORM:
        return (moe_attention_tensor_shape){"q_norm", true, s->q_rank > 0 ? 1 : 0, s->q_rank};
    case MOE_ATTENTION_Q:
        return (moe_attention_tensor_shape){s->q_rank > 0 ? "w_uq" : "w_q", false,
                                            s->heads * s->key,
                                            s->q_rank > 0 ? s->q_rank : s->hidden};
    case MOE_ATTENTION_DKV:
        return (moe_attention_tensor_shape){"w_dkv", false, s->kv_rank, s->hidden};
    case MOE_ATTENTION_KV_NORM:
        return (moe_attention_tensor_shape){"kv_norm", true, s->latent ? 1 : 0, s->kv_rank};
    case MOE_ATTENTION_KR:
        return (moe_attention_tensor_shape){"w_kr", false, s->latent ? s->rope : 0, s->hidden};
    case MOE_ATTENTION_K:
        return (moe_attention_tensor_shape){s->latent ? "w_uk" : "w_k", false,
                                            s->kv_heads * own_key, from};
    case MOE_ATTENTION_V:
        return (moe_attention_tensor_shape){s->latent ? "w_uv" : "w_v", false,
                                            s->kv_heads * s->value, from};
    case MOE_ATTENTION_O:
        return (moe_attention_tensor_shape){"w_o", false, s->hidden, s->heads * s->value};
    case MOE_ATTENTION_TENSORS:
        break;
    }
    MOE_ASSERT(false);
    return (moe_attention_tensor_shape){0};
}

int64_t moe_attention_parameters(const moe_config *c) {
    const moe_attention_shape s = moe_attention_shape_of(c);
    int64_t sum = 0;
    for (int i = 0; i < MOE_ATTENTION_TENSORS && c->model.attention != MOE_ATTENTION_NONE; i++) {
        const moe_attention_tensor_shape t =
            moe_attention_tensor_of(&s, (enum moe_attention_tensor)i);
        sum += t.rows * t.columns;
    }
    return sum;
}
