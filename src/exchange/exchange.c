/* exchange.c: dispatch; combine.c is the way back; announce.c tells the ranks what comes; carry.c
 * and near.c are what carries all that. Rows of the own rank never enter a buffer: on one rank
 * nothing is packed at all. */
#include "exchange/exchange.h"

#include <omp.h>
#include <string.h>

#include "base/status.h"
#include "exchange/internal.h"
#include "exchange/row_format.h"

int64_t moe_exchange_row_metadata_bytes(enum moe_exchange_mode mode, int hop) {
    return moe_row_format_of(mode, hop)->head_words * (int64_t)sizeof(int32_t);
}

int64_t moe_exchange_pair_metadata_bytes(void) {
    return MOE_PAIR_WORDS * (int64_t)sizeof(int32_t);
}

/* --- vectors --- */

/* x [T,H] in the format of the wire: where the host reads it; else itself, or encoded in e->coded.
 */
static const char *lay_out_tokens(moe_exchange *e,
                                  const moe_plan *plan,
                                  moe_payload_format f,
                                  const real *x,
                                  moe_inbox_rows *rows) {
    int64_t h = e->inbox.hidden, tokens = plan->num_tokens, bytes = moe_payload_bytes(f, h);
    char *to = e->host ? moe_near_tokens(e, plan, bytes, rows) : NULL;
    if (!moe_payload_rounds(f)) {
        if (e->host) {
            moe_copy_rows((const char *)x, tokens, bytes, to);
        }
        return e->host ? to : (const char *)x;
    }
    if (!e->host) {
        moe_reserve_varying(&e->coded, &e->coded_capacity, tokens * bytes, 1, "rows to send");
        to = e->coded;
    }
    moe_payload_encode_all(f, x, tokens, h, to);
    return to;
}

/* Rows of the own rank are read among its tokens: `numbers`, as experts see them. */
static void find_own(const moe_inbox *in, moe_inbox_rows *rows, const real *numbers) {
    for (int64_t r = in->own_begin; r < in->own_end; r++) {
        rows->row[r] = numbers + in->local_token[r - in->own_begin] * in->hidden;
    }
}

/* Those of other hosts have landed one behind the other. */
static void find_far(const moe_exchange *e, moe_inbox_rows *rows, const char *at, int64_t bytes) {
    const moe_inbox *in = &e->inbox;
    for (int q = 0; q < e->comm->size; q++) {
        for (int64_t r = in->rank_row[q]; moe_exchange_is_far(e, q) && r < in->rank_row[q + 1];
             r++) {
            rows->row[r] = (const real *)(const void *)at;
            at += bytes;
        }
    }
}

/* Decodes rows begin .. end - 1. Rows that follow each other may stand in the same place: one token
 * for several experts. */
static void decode_rows(moe_inbox_rows *rows,
                        moe_payload_format f,
                        int64_t begin,
                        int64_t end,
                        int64_t hidden,
                        real *to) {
    const real **row = rows->row;
#pragma omp parallel for schedule(static)
    for (int64_t r = begin; r < end; r++) {
        if (r == begin || row[r] != row[r - 1]) {
            moe_payload_decode(f, row[r], hidden, to + (r - begin) * hidden);
        }
    }
    const real *coded = NULL;
    for (int64_t r = begin; r < end; r++) {
        const bool again = row[r] == coded;
        coded = row[r];
        row[r] = again ? row[r - 1] : to + (r - begin) * hidden;
    }
}

/* Rows become numbers in the landing, but those of own tokens, which were decoded with them. */
static void decode_all(moe_exchange *e, moe_payload_format f, bool own, moe_inbox_rows *rows) {
    const moe_inbox *in = &e->inbox;
    const int64_t h = in->hidden, begin = own ? in->own_begin : in->num_rows,
                  end = own ? in->own_end : in->num_rows;
    real *to = (real *)(void *)moe_landing_memory(
        &rows->landing, (in->num_rows - (end - begin)) * h * (int64_t)sizeof(real),
        "received rows");
    decode_rows(rows, f, 0, begin, h, to);
    decode_rows(rows, f, end, in->num_rows, h, to + begin * h);
}

const real *moe_inbox_rows_decoded(moe_inbox_rows *rows,
                                   moe_payload_format f,
                                   const char *coded,
                                   int64_t count,
                                   int64_t hidden,
                                   bool varies) {
    if (!moe_payload_rounds(f)) {
        return (const real *)(const void *)coded;
    }
    (varies ? moe_reserve_varying : moe_reserve)(&rows->rounded, &rows->rounded_capacity,
                                                 count * hidden, sizeof(real), "rounded tokens");
    moe_payload_decode_all(f, coded, count, hidden, rows->rounded);
    return rows->rounded;
}

const char *moe_exchange_move(moe_exchange *e,
                              const moe_plan *plan,
                              const char *tokens,
                              int64_t bytes,
                              moe_landing *l,
                              char *whole) {
    return moe_exchange_carry(e,
                              &(moe_cargo){.begin = plan->rank_row,
                                           .arriving = e->inbox.rank_row,
                                           .from = tokens,
                                           .index = plan->row_token,
                                           .bytes = bytes,
                                           .most = e->most_rows,
                                           .into = whole,
                                           .what = "received rows"},
                              l);
}

/* The own tokens as experts see them: the caller's, or as a narrow payload left them; of a second
 * hop the rows that arrived in the first, or NULL where the host has shown them. */
static const real *numbers_of(const moe_exchange *e,
                              const moe_plan *last,
                              moe_payload_format f,
                              const char *tokens,
                              const real *x,
                              moe_inbox_rows *rows) {
    const bool relayed = last->hop > 0;
    if (relayed ? e->host != NULL : !moe_payload_rounds(f)) {
        return relayed ? NULL : x;
    }
    return moe_inbox_rows_decoded(rows, f, tokens, last->num_tokens, e->inbox.hidden, relayed);
}

/* From tokens x, which the host sees already, to the rows of the inbox. last: the plan of the last
 * hop, whose tokens travel as `tokens`. */
static void receive_rows(moe_exchange *e,
                         const moe_plan *last,
                         moe_payload_format f,
                         const char *tokens,
                         const real *x,
                         moe_inbox_rows *rows) {
    const int64_t bytes = moe_payload_bytes(f, e->inbox.hidden);
    if (e->inbox.chunks > 1) {
        moe_chunks_dispatch(e, last, tokens, f, rows);
        find_own(&e->inbox, rows, numbers_of(e, last, f, tokens, x, rows));
        return;
    }
    const char *landed = moe_exchange_move(
        e, last, tokens, bytes, moe_payload_rounds(f) ? &e->arriving : &rows->landing, NULL);
    const real *own = numbers_of(e, last, f, tokens, x, rows);
    find_far(e, rows, landed, bytes);
    if (e->host) {
        moe_near_find(e, last, bytes, rows);
    }
    if (own) {
        find_own(&e->inbox, rows, own);
    }
    if (moe_payload_rounds(f)) {
        decode_all(e, f, own != NULL, rows);
    }
}

/* The barrier of the metadata has shown them, too. */
static void show_tokens(const moe_exchange *e, moe_inbox_rows *rows) {
    if (e->host) {
        rows->tokens.barriers = e->host->barriers;
    }
}

/* Whose rows the experts look at: a plan's, or those of its second hop. */
static void begin_inbox(moe_exchange *e, const moe_plan *last, const moe_placement *placement) {
    moe_inbox *in = &e->inbox;
    const int rank = e->comm->rank;
    if (in->chunks > 1) {
        moe_chunks_order(e, last);
    }
    moe_inbox_group(in, placement, last->first_device);
    in->local_token = last->row_token + last->rank_row[rank];
    in->own_begin = in->rank_row[rank];
    in->own_end = in->rank_row[rank + 1];
    MOE_ASSERT(in->own_end - in->own_begin == last->rank_row[rank + 1] - last->rank_row[rank]);
    in->results = moe_exchange_results(e, MOE_UNIT_ROW);
}

void moe_exchange_dispatch(moe_exchange *e,
                           const moe_comm *comm,
                           const moe_plan *plan,
                           const moe_placement *placement,
                           const real *x,
                           int64_t hidden,
                           int64_t most_pairs_global) {
    moe_inbox_rows *rows = &e->inbox.x;
    const moe_payload_format f = e->dispatched;
    e->inbox.hidden = hidden;
    e->comm = comm;
    const char *tokens = lay_out_tokens(e, plan, f, x, rows);
    const moe_plan *last = plan;
    const moe_inbox *before = NULL;
    if (moe_row_format_hops(plan->mode) > 1) {
        moe_relay_announce(e, comm, plan, placement, hidden, most_pairs_global);
        tokens = moe_relay_move(e, plan, tokens, f, false);
        last = &e->relay->plan;
        before = &e->relay->first.inbox;
    }
    moe_exchange_announce(e, comm, last, placement, hidden, most_pairs_global, before);
    show_tokens(e, rows);
    if (before) {
        show_tokens(e, &e->relay->first.inbox.x);
    }
    begin_inbox(e, last, placement);
    receive_rows(e, last, f, tokens, x, rows);
}

void moe_exchange_dispatch_gradient(moe_exchange *e, const moe_plan *plan, const real *dy) {
    moe_inbox_rows *rows = &e->inbox.dy;
    const moe_payload_format f = e->combined;
    const char *tokens = lay_out_tokens(e, plan, f, dy, rows);
    const moe_plan *last = plan;
    if (moe_row_format_hops(plan->mode) > 1) {
        if (e->host && moe_exchange_has_far(e)) {
            moe_shown_end(&rows->tokens, e->host);
        }
        tokens = moe_relay_move(e, plan, tokens, f, true);
        last = &e->relay->plan;
    }
    if (e->host) {
        moe_shown_end(&rows->tokens, e->host);
    }
    if (last != plan) {
        show_tokens(e, &e->relay->first.inbox.dy);
    }
    receive_rows(e, last, f, tokens, dy, rows);
}

/* --- end --- */

static void free_rows(moe_inbox_rows *rows) {
    moe_shown_free(&rows->tokens);
    moe_landing_free(&rows->landing);
    moe_free(rows->rounded);
}

void moe_exchange_free(moe_exchange *e) {
    moe_relay_free(e->relay);
    moe_block_free(&e->fixed);
    moe_block_free(&e->arrived);
    moe_shown *const shown[] = {&e->board, &e->results, &e->pairs};
    for (size_t i = 0; i < sizeof shown / sizeof shown[0]; i++) {
        moe_shown_free(shown[i]);
    }
    moe_landing *const landings[] = {&e->words_out, &e->words,   &e->returned,
                                     &e->arriving,  &e->sending, &e->returning};
    for (size_t i = 0; i < sizeof landings / sizeof landings[0]; i++) {
        moe_landing_free(landings[i]);
    }
    free_rows(&e->inbox.x);
    free_rows(&e->inbox.dy);
    moe_free(e->back);
    moe_free(e->coded);
    *e = (moe_exchange){0};
}
