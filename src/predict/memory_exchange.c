/* memory_exchange.c: the bytes of the exchange of rows: vectors, lists and metadata of each hop,
 * and windows of shared memory. The symbols are those of memory.c. */
#include "base/alloc.h"
#include "base/sparse.h"
#include "exchange/exchange.h"
#include "exchange/payload.h"
#include "exchange/plan.h"
#include "exchange/row_format.h"
#include "predict/internal.h"
#include "world/board.h"

/* --- vectors --- */

/* Bytes of a vector [H] on the wire, 0 where it is not rounded on its way. */
static int64_t wire_bytes(const moe_config *c, moe_payload_format f) {
    return moe_payload_rounds(f) ? moe_payload_bytes(f, c->model.hidden_size) : 0;
}

/* Vectors [H] in a buffer of their own. */
static int64_t of_vectors(const moe_config *c, int64_t rows) {
    return moe_memory_touched(mul3(rows, c->model.hidden_size, REAL));
}

/* Bytes of a vector [H] that is packed or lands. A payload that rounds has the same room, because
 * the last step is run with fp32 too (train/payload_error.h). */
static int64_t packed(const moe_config *c) {
    return mul(c->model.hidden_size, REAL);
}

/* Bytes of a vector [H] on the wire, rounded or not. */
static int64_t carried(const moe_config *c, int64_t wire) {
    return wire > 0 ? wire : packed(c);
}

/* The vectors of a layer (exchange.c, combine.c): received from other ranks, in training x and dy;
 * and what is packed for them, where results land later. Of a payload that rounds, the tokens or
 * the results stand there as bytes, and so do the rows from other ranks; and the tokens as numbers
 * again, x and in training dy. Through shared memory nothing is packed, nothing lands and bytes
 * stand in windows: what is left are numbers that were bytes. */
static int64_t vectors(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t out = wire_bytes(c, moe_payload_of_dispatch(c));
    const int64_t back = wire_bytes(c, moe_payload_of_combine(c));
    const int64_t rounded = (out > 0) + (s->backward && back > 0);
    const int64_t decoded = mul(rounded, of_vectors(c, s->first > 0 ? s->first : s->tokens));
    const int64_t arriving = s->backward ? max64(out, back) : out;
    const int64_t coded = max64(mul(s->tokens, arriving), mul(s->rows, back));
    if (moe_memory_shares(c)) {
        return s->first > 0 ? mul(rounded, of_vectors(c, s->in_rows))
                            : add(decoded, mul(rounded, of_vectors(c, s->in_remote)));
    }
    return add(add(moe_memory_touched(mul(s->remote, packed(c))),
                   mul(s->backward ? 2 : 1, of_vectors(c, s->in_remote))),
               add(decoded, add(moe_memory_touched(coded),
                                moe_memory_touched(mul(s->in_remote, arriving)))));
}

/* What an exchange in several chunks adds (chunks.c): vectors for other ranks, packed apart from
 * what comes back meanwhile; of a payload that rounds, what goes back as bytes; and the orders of
 * both sides. */
static int64_t of_chunks(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t back = wire_bytes(c, moe_payload_of_combine(c));
    if (c->exchange.chunks == 1) {
        return 0;
    }
    const int64_t apart = mul(s->rows, back);
    const int64_t groups =
        mul3(s->local_devices, moe_config_slots_per_device(c), c->exchange.chunks);
    return add(add(moe_memory_touched(mul(s->remote, packed(c))), moe_memory_touched(apart)),
               add(mul(add(s->rows, s->in_rows), INT + 2 * WORD), mul(groups, WORD)));
}

/* The last step is run with fp32 too: its output and gradients, and the counts of its layers. */
static int64_t fp32_step(const moe_config *c, const moe_memory_sizes *s) {
    if (c->model.compute == MOE_COMPUTE_FP32 && !moe_payload_rounds(moe_payload_of_dispatch(c)) &&
        !moe_payload_rounds(moe_payload_of_combine(c))) {
        return 0;
    }
    const int64_t d = c->cluster.devices, n = c->model.num_experts;
    const int64_t counts =
        mul(moe_config_moe_layers(c),
            add(add(mul(2, moe_memory_matrix_cells(c, s)), mul(5, d)), mul(3, n)));
    const int64_t y = mul(s->tokens, c->model.hidden_size);
    return add(mul(add(y, s->train ? moe_memory_local_parameters(c, s) : 0), REAL),
               mul(counts, WORD));
}

/* --- lists and metadata --- */

/* What a rank sends and receives in one hop. */
typedef struct hop {
    const moe_row_format *format;
    bool last; /* its rows stop at their experts */
    int64_t tokens, rows, pairs, parts;
    int64_t in_rows, in_pairs;
    double in_remote; /* the share of the arriving rows that other ranks send */
} hop;

static bool has_two_hops(const moe_config *c) {
    return moe_row_format_hops(c->exchange.mode) > 1;
}

/* The lists of a plan, by row, by part and by pair (plan.c). */
static int64_t plan_of(const hop *h) {
    const bool has_parts = h->format->several_devices;
    const int64_t of_row = 2 * INT + 2 * WORD + (has_parts ? WORD : 0);
    return add(add(mul(h->rows, of_row), mul(h->tokens, has_parts ? 2 * WORD : WORD)),
               add(mul(h->pairs, INT + REAL + 2 * WORD), mul(h->parts, INT + WORD)));
}

/* The lists of an inbox, by row and by pair, and where what comes back stands (exchange.c). Of the
 * places of dy a forward pass writes none. */
static int64_t inbox_of(const moe_config *c, const moe_memory_sizes *s, const hop *h) {
    const int64_t of_source = has_two_hops(c) ? INT + WORD + (h->last ? WORD : 0) : 0;
    const int64_t of_vectors = h->last ? (s->backward ? 2 : 1) * WORD : 0;
    const int64_t of_pair = INT + REAL + (h->last ? 3 : 1) * WORD;
    const int64_t returned = h->last || c->exchange.node_sum ? h->rows : h->parts;
    return add(
        add(mul(h->in_rows, 2 * INT + WORD + of_source + of_vectors), mul(h->in_pairs, of_pair)),
        mul(returned, WORD));
}

/* Of the blocks of fixed size for and from all ranks; 0 where metadata do not travel in blocks. */
static int64_t blocks_of(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t tokens = mul(s->device_tokens, c->cluster.devices);
    if (s->ranks == 1) {
        return 0;
    }
    return mul(2 * s->ranks,
               moe_exchange_block_bytes(c->exchange.mode, c->cluster.devices, (int32_t)s->ranks,
                                        tokens, mul(tokens, s->most)));
}

/* The metadata that a rank sends, also to itself, and those that other ranks send to it. In a host
 * they stand in windows. */
static int64_t metadata_of(const moe_config *c, const moe_memory_sizes *s, const hop *h) {
    const int64_t head = h->format->head_words;
    const int64_t sent = add(mul(h->rows, head), mul(h->pairs, MOE_PAIR_WORDS));
    const int64_t received = add(mul(h->in_rows, head), mul(h->in_pairs, MOE_PAIR_WORDS));
    if (moe_memory_shares(c)) {
        return 0;
    }
    const int64_t blocks = blocks_of(c, s);
    return blocks > 0 ? blocks
                      : mul(INT, add(sent, moe_memory_whole((double)received * h->in_remote)));
}

static int64_t lists_of(const moe_config *c, const moe_memory_sizes *s, const hop *h) {
    return add(add(plan_of(h), inbox_of(c, s, h)), metadata_of(c, s, h));
}

/* --- hops --- */

/* The vectors of a first hop (relay.c): all rows that arrived stand in memory, in training x and
 * dy; beside them what was packed for other ranks, where results land later, and what goes back, in
 * a payload that rounds also as bytes. Through shared memory only what goes back is not in windows,
 * where its numbers are rounded. */
static int64_t relay_vectors(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t back = wire_bytes(c, moe_payload_of_combine(c));
    const int64_t returned = c->exchange.node_sum ? s->first : s->rows;
    const int64_t remote = returned - returned / s->first_ranks;
    const int64_t arrived = mul(s->backward ? 2 : 1, of_vectors(c, s->first));
    if (moe_memory_shares(c)) {
        return back > 0 ? of_vectors(c, returned) : 0;
    }
    return add(add(arrived, of_vectors(c, returned)),
               add(of_vectors(c, remote), moe_memory_touched(mul(returned, back))));
}

/* The only hop, or the second of two, whose tokens are the rows that arrived in the first. */
static hop last_hop(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t in_rows = max64(1, s->in_rows);
    return (hop){.format =
                     moe_row_format_of(c->exchange.mode, moe_row_format_hops(c->exchange.mode) - 1),
                 .last = true,
                 .tokens = has_two_hops(c) ? s->first : s->tokens,
                 .rows = s->rows,
                 .pairs = s->sent,
                 .in_rows = s->in_rows,
                 .in_pairs = s->in_pairs,
                 .in_remote = (double)s->in_remote / (double)in_rows};
}

/* What a first hop adds (relay.c): its vectors; its lists, with a part for each row of the second;
 * the rows by device; and in training numbers of pairs. */
static int64_t relay(const moe_config *c, const moe_memory_sizes *s) {
    if (!has_two_hops(c)) {
        return 0;
    }
    const hop h = {.format = moe_row_format_of(c->exchange.mode, 0),
                   .tokens = s->tokens,
                   .rows = s->first,
                   .pairs = s->sent,
                   .parts = s->rows,
                   .in_rows = s->first,
                   .in_pairs = s->sent,
                   .in_remote = 1 - 1.0 / (double)s->first_ranks};
    return add(add(relay_vectors(c, s), lists_of(c, s, &h)),
               add(mul(s->first, WORD), s->backward ? mul(s->sent, 2 * REAL) : 0));
}

/* The plan and the inbox of a layer (plan.c, exchange.c): vectors; lists of rows and pairs;
 * metadata; and numbers for each pair of a local and any device that occurs, sent and received. */
static int64_t exchange_of_layers(const moe_config *c, const moe_memory_sizes *s) {
    const hop last = last_hop(c, s);
    const int64_t cells = min64(s->sent, mul(s->local_devices, c->cluster.devices));
    const int64_t fixed =
        add(mul((int64_t)sizeof(moe_plan_cell) + (int64_t)sizeof(moe_sparse_cell), cells),
            mul3(3 * s->threads, c->model.hidden_size, REAL));
    return mul(s->copies, add(add(vectors(c, s), lists_of(c, s, &last)),
                              add(fixed, add(relay(c, s), of_chunks(c, s)))));
}

/* --- windows --- */

bool moe_memory_shares(const moe_config *c) {
    return moe_config_shares_memory(c) && c->ranks > 1;
}

/* What the host sees of this rank in one hop: metadata, vectors that it has (in training x and dy),
 * what it returns, and in training numbers of pairs. */
static int64_t shown(const moe_config *c,
                     const moe_memory_sizes *s,
                     int64_t rows,
                     int64_t vectors,
                     int64_t returned) {
    const int64_t out = carried(c, wire_bytes(c, moe_payload_of_dispatch(c)));
    const int64_t back = carried(c, wire_bytes(c, moe_payload_of_combine(c)));
    const int64_t words = add(mul(2, rows), mul(1 + REAL / INT, s->sent));
    return add(add(mul(vectors, out + (s->train ? back : 0)), mul(returned, back)),
               add(mul(words, INT), s->train ? mul(s->sent, REAL) : 0));
}

/* One of each: the results of the experts stand in a window in place of memory of the rank. */
static int64_t windows_of_layer(const moe_config *c, const moe_memory_sizes *s) {
    if (s->first == 0) {
        return shown(c, s, s->rows, s->tokens, s->in_rows);
    }
    const int64_t parts = c->exchange.node_sum ? s->first : s->rows;
    return add(shown(c, s, s->first, s->tokens, parts),
               add(shown(c, s, s->rows, 0, s->in_rows), mul(INT, s->rows)));
}

int64_t moe_memory_windows(const moe_config *c, const moe_memory_sizes *s) {
    if (!moe_memory_shares(c)) {
        return 0;
    }
    const int64_t bytes =
        add(mul(s->copies, windows_of_layer(c, s)), MOE_BOARD_HALVES * MOE_BOARD_BYTES);
    return add(bytes, bytes / 4);
}

/* A window has a quarter more than it needs, and all of it is touched. Metadata were counted with
 * the lists, and results with the experts. */
int64_t moe_memory_exchange(const moe_config *c, const moe_memory_sizes *s) {
    const int64_t results = moe_payload_rounds(moe_payload_of_combine(c))
                                ? 0
                                : mul3(mul(s->copies, s->in_rows), c->model.hidden_size, REAL);
    const int64_t windows = moe_memory_windows(c, s);
    return add(add(exchange_of_layers(c, s), fp32_step(c, s)),
               windows > results ? windows - results : windows);
}
