/* drop.c: what a capacity dropped, by expert, device, sequence and token, and what that saved. */
#include <string.h>

#include "model/reach.h"
#include "tally/internal.h"

enum scalar {
    REASSIGNED,
    DROPPED_TOKENS,
    FULLY_DROPPED,
    EXEMPT_OVERFLOW,
    PADDING_ROWS,
    DROPPED_SEQUENCES,
    NUM_SCALARS
};

/* How many sequences have their drops summed over the ranks. Where there are too many for the list,
 * they are only counted, and a sequence that spans ranks is counted once for each. */
static int64_t listed_sequences(const moe_context *context) {
    int64_t sequences = context->batch->num_sequences;
    return context->capacity.policy != MOE_CAPACITY_NONE && sequences <= MOE_MAX_LISTED_SEQUENCES
               ? sequences
               : 0;
}

int64_t moe_tally_drop_words(const moe_context *context) {
    return 2 * (int64_t)context->router.num_experts + context->batch->devices + NUM_SCALARS +
           listed_sequences(context);
}

/* Counts the dropped pairs of one token, adds them to by_expert and to by_device, and returns how
 * many there are. */
static int64_t count_token(const moe_layer *layer,
                           const moe_context *context,
                           const moe_activations *a,
                           int64_t t,
                           int64_t *by_expert,
                           int64_t *by_device,
                           int64_t *scalar) {
    int64_t begin = a->routing.row_offset[t];
    int64_t end = a->routing.row_offset[t + 1];
    int64_t dropped = 0;
    for (int64_t i = begin; i < end; i++) {
        int32_t chosen = a->routing.expert[i], server = a->drop.server[i];
        dropped += server < 0;
        by_expert[chosen] += server < 0;
        by_device[moe_reach_device(layer, context->batch, chosen, t)] += server < 0;
        scalar[REASSIGNED] += server >= 0 && server != chosen;
    }
    scalar[DROPPED_TOKENS] += dropped > 0;
    scalar[FULLY_DROPPED] += dropped > 0 && dropped == end - begin;
    return dropped;
}

void moe_tally_drop_count(const moe_layer *layer,
                          const moe_context *context,
                          const moe_activations *a,
                          int64_t *words) {
    const moe_batch *b = context->batch;
    const moe_routing *sent = moe_activations_sent(a);
    int64_t *kept = words;
    int64_t *dropped = kept + context->router.num_experts;
    int64_t *by_device = dropped + context->router.num_experts;
    int64_t *scalar = by_device + b->devices;
    int64_t listed = listed_sequences(context), *by_sequence = scalar + NUM_SCALARS;
    for (int64_t i = 0; i < sent->num_selections; i++) {
        kept[sent->expert[i]]++;
    }
    if (!a->drop.on) {
        return;
    }
    for (int64_t i = 0; i < b->num_segments; i++) {
        int64_t lost = 0;
        for (int64_t t = b->segment[i].begin; t < b->segment[i].end; t++) {
            lost += count_token(layer, context, a, t, dropped, by_device, scalar);
        }
        if (listed) {
            by_sequence[b->segment[i].sequence] += lost;
        }
        scalar[DROPPED_SEQUENCES] += lost > 0;
    }
    scalar[EXEMPT_OVERFLOW] = a->drop.exempt_overflow;
    scalar[PADDING_ROWS] = a->drop.padding_rows;
}

static void fill_sequences(const int64_t *by_sequence, int64_t listed, moe_capacity_metrics *c) {
    if (listed == 0) {
        return;
    }
    moe_capacity_metrics_reserve(c, listed);
    memcpy(c->dropped_per_sequence, by_sequence, (size_t)listed * sizeof(int64_t));
    c->num_sequences = listed;
    c->dropped_sequences = 0;
    for (int64_t q = 0; q < listed; q++) {
        c->dropped_sequences += by_sequence[q] > 0;
    }
}

void moe_tally_drop_fill(const moe_context *context,
                         const moe_activations *a,
                         const int64_t *words,
                         int64_t rows_saved,
                         int64_t back_saved,
                         moe_layer_metrics *out) {
    int32_t n = context->router.num_experts;
    const int32_t devices = context->batch->devices;
    const int64_t *dropped = words + n, *by_device = dropped + n, *scalar = by_device + devices;
    /* A row travels twice: in dispatch and in combine. */
    int64_t there = moe_payload_bytes(context->dispatched, context->config->model.hidden_size),
            back = moe_payload_bytes(context->combined, context->config->model.hidden_size);
    moe_capacity_metrics *c = &out->capacity;
    memcpy(out->kept_per_expert, words, (size_t)n * sizeof(int64_t));
    memcpy(out->dropped_per_expert, dropped, (size_t)n * sizeof(int64_t));
    memcpy(out->dropped_per_device, by_device, (size_t)devices * sizeof(int64_t));
    out->dropped = 0;
    for (int32_t e = 0; e < n; e++) {
        out->dropped += dropped[e];
    }
    if (!a->drop.on) {
        return;
    }
    c->on = true;
    c->capacity = a->drop.capacity;
    c->reassigned = scalar[REASSIGNED];
    c->dropped_tokens = scalar[DROPPED_TOKENS];
    c->fully_dropped_tokens = scalar[FULLY_DROPPED];
    c->exempt_overflow = scalar[EXEMPT_OVERFLOW];
    c->rows_saved = rows_saved;
    c->bytes_saved = rows_saved * there + back_saved * back;
    c->padding_rows = scalar[PADDING_ROWS];
    c->padding_bytes = c->padding_rows * (there + back);
    c->dropped_sequences = scalar[DROPPED_SEQUENCES];
    fill_sequences(scalar + NUM_SCALARS, listed_sequences(context), c);
}
