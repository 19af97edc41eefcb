/* memory_attention.c: the bytes of attention: activations of the layers, and the working memory
 * that they share. The symbols are those of attention/shape.h; T tokens of the fullest rank. */
#include "attention/flash.h"
#include "attention/shape.h"
#include "predict/internal.h"

enum { CALL_ROWS = 256 }; /* of a product forward (attention/linear.c) */

/* What a layer keeps of each token (attention.c): the normed input [H], queries, keys and values of
 * the heads, the output, a number for each head, and with mla the narrow vectors before and after
 * their norms. */
static int64_t reals_of_layer(const moe_attention_shape *a) {
    const int64_t by_head =
        add(mul(a->heads, a->key + a->value + 1), mul(a->kv_heads, a->key + a->value));
    return add(add(by_head, mul(2, a->kv_rank + a->q_rank)), a->normed ? a->hidden : 0);
}

/* What a pass works with of each token: queries, keys and values by token; in training also their
 * gradients, those of the output by token and by head, and of the narrow vectors and the input. */
static int64_t reals_of_work(const moe_attention_shape *a, bool train) {
    const int64_t q = mul(a->heads, a->key), o = mul(a->heads, a->value);
    const int64_t kv = mul(a->kv_heads, a->key + a->value);
    const int64_t gradients = add(add(q, kv), add(mul(2, o), a->kv_rank + a->q_rank + a->hidden));
    return add(add(q, add(kv, a->rope)), train ? gradients : 0);
}

int64_t moe_memory_attention_product(const moe_config *c, const moe_memory_sizes *s) {
    const moe_attention_shape a = moe_attention_shape_of(c);
    const int64_t rows = s->train ? s->device_tokens : min64(s->device_tokens, CALL_ROWS);
    int64_t most = 0;
    if (c->model.attention == MOE_ATTENTION_NONE) {
        return 0;
    }
    for (int i = 0; i < MOE_ATTENTION_TENSORS; i++) {
        const moe_attention_tensor_shape t =
            moe_attention_tensor_of(&a, (enum moe_attention_tensor)i);
        most = max64(most, t.norm ? 0 : mul3(rows, t.rows, t.columns));
    }
    const int64_t length = c->data.sequence_length > 0 ? c->data.sequence_length : s->device_tokens;
    const int64_t tile = min64(MOE_FLASH_TILE, length);
    return max64(most, mul3(tile, tile, max64(a.key, a.value)));
}

/* What a decoder keeps of its sequences (attention/cache.h), and a score of each place and head. */
static int64_t reals_of_cache(const moe_config *c,
                              const moe_memory_sizes *s,
                              const moe_attention_shape *a) {
    const int64_t sequences = mul(s->local_devices, c->generate.sequences_per_device);
    const int64_t row = a->latent ? a->kv_rank + a->rope : mul(a->kv_heads, a->key + a->value);
    return mul(mul(sequences, s->places), add(mul(c->model.num_layers, row), a->heads));
}

/* Every layer keeps its own activations in training, unless train.recompute is set, and the input
 * of its MoE layer. Each thread has two tiles, or a tile and its output. */
int64_t moe_memory_attention(const moe_config *c, const moe_memory_sizes *s) {
    const moe_attention_shape a = moe_attention_shape_of(c);
    const int64_t layers = s->train ? c->model.num_layers : 1;
    const int64_t kept = s->train && !c->train.recompute ? layers : 1;
    const int64_t tile = mul(MOE_FLASH_TILE, MOE_FLASH_TILE);
    if (c->model.attention == MOE_ATTENTION_NONE) {
        return 0;
    }
    const int64_t tiles = mul(s->threads, add(2 * tile, mul(MOE_FLASH_TILE, a.value)));
    const int64_t of_token =
        add(add(mul(kept, reals_of_layer(&a)), mul(layers, a.hidden)), reals_of_work(&a, s->train));
    return mul(add(add(mul(s->tokens, of_token), tiles), reals_of_cache(c, s, &a)), REAL);
}
