/* check_attention.c: what attention needs of the model, of its head sizes and of the batch. */
#include "config/check.h"
#include "config/refuse.h"

/* --- what it goes with --- */

static int check_model(const moe_config *c, moe_status *st) {
    const enum moe_key_id attention = MOE_KEY(model, attention);
    const moe_pair_rule rules[] = {
        {c->data.source == MOE_SOURCE_LOGITS || c->data.source == MOE_SOURCE_ROUTING, attention,
         MOE_KEY(data, source),
         "a recording has no vectors to attend to: source = synthetic or text, or attention = "
         "none"},
        {c->data.boundaries[0] != '\0', attention, MOE_KEY(data, boundaries),
         "its sequences have one length: data.sequence_length instead, or attention = none"},
        {c->model.load[0] != '\0', attention, MOE_KEY(model, load),
         "the folder holds the weights of one MoE layer: attention = none"},
        {!c->model.residual, attention, MOE_KEY(model, residual),
         "attention adds to the residual stream: residual = yes, or attention = none"},
    };
    return moe_refuse_pairs(c, rules, sizeof rules / sizeof rules[0], st);
}

/* --- heads --- */

static int check_heads(const moe_config *c, moe_status *st) {
    const moe_model_config *m = &c->model;
    const bool latent = m->attention == MOE_ATTENTION_MLA;
    const int64_t width = m->head_dim + (int64_t)(latent ? m->rope_dim : 0), most = 1 << 20;
    if (m->head_dim == 0) {
        return moe_refuse_key(
            c, moe_refuse_written(c, MOE_KEY(model, num_heads), MOE_KEY(model, hidden_size)), st,
            "model.num_heads has to divide model.hidden_size (here %d and %d), "
            "or model.head_dim has to say how wide a head is",
            m->num_heads, m->hidden_size);
    }
    if (m->num_heads * width > most) {
        return moe_refuse_key(c, MOE_KEY(model, num_heads), st,
                              "times the width of a head, %lld, it may be at most %lld",
                              (long long)width, (long long)most);
    }
    if (m->rope_dim % 2 != 0) {
        return moe_refuse_key(
            c, MOE_KEY(model, rope_dim), st,
            "rotary position embedding turns pairs: an even number, or 0 for none");
    }
    if (!latent && m->rope_dim > m->head_dim) {
        return moe_refuse_key(
            c, moe_refuse_written(c, MOE_KEY(model, rope_dim), MOE_KEY(model, head_dim)), st,
            "the rotary part of attention = mha is part of a head: "
            "model.rope_dim may be at most model.head_dim (here %d and %d)",
            m->rope_dim, m->head_dim);
    }
    if (!latent && m->num_kv_heads > 0 && m->num_heads % m->num_kv_heads != 0) {
        return moe_refuse_key(c, MOE_KEY(model, num_kv_heads), st,
                              "it has to divide model.num_heads = %d", m->num_heads);
    }
    return MOE_OK;
}

/* --- sequences --- */

/* Attention is local to a device, so no sequence may cross from one device to the next. */
static int check_sequences(const moe_config *c, moe_status *st) {
    const int64_t tokens = c->data.tokens_per_device, length = c->data.sequence_length;
    if (c->cluster.devices == 1 || (length > 0 && tokens % length == 0)) {
        return MOE_OK;
    }
    return moe_refuse_key(
        c, moe_refuse_written(c, MOE_KEY(data, sequence_length), MOE_KEY(data, tokens_per_device)),
        st,
        "attention needs every sequence whole on one device: "
        "data.sequence_length has to divide data.tokens_per_device (here %lld and "
        "%lld)",
        (long long)length, (long long)tokens);
}

int moe_check_attention(const moe_config *c, moe_status *st) {
    if (c->model.attention == MOE_ATTENTION_NONE) {
        return MOE_OK;
    }
    if (check_model(c, st) != MOE_OK || check_heads(c, st) != MOE_OK) {
        return st->code;
    }
    return moe_config_generates(c) ? MOE_OK : check_sequences(c, st);
}
