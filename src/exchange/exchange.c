/* exchange.c: dispatch and combine over MPI_Alltoallv.
 *
 * Metadata is one stream of int32 words per destination: for each row its token id (and, in mode
 * `token`, how many pairs follow), for each pair the expert id and the weight. One Alltoallv
 * carries it, one more the payload. Advantage: a row's payload stays contiguous and aligned, and
 * the receiver can group rows by expert before the payload arrives. Disadvantage: one more message
 * per pair of ranks than a fused format. Rows of the own rank never enter a buffer; at 1 rank
 * nothing is packed at all. */
#include "exchange/exchange.h"

#include <omp.h>
#include <string.h>

#include "base/status.h"
#include "base/vector.h"

enum { PAIR_WORDS = 1 + (int)(sizeof(real) / sizeof(int32_t)) };

static int64_t head_words(enum moe_exchange_mode mode) {
    return mode == MOE_EXCHANGE_TOKEN ? 2 : 1;
}

int64_t moe_exchange_row_metadata_bytes(enum moe_exchange_mode mode) {
    return head_words(mode) * (int64_t)sizeof(int32_t);
}
int64_t moe_exchange_pair_metadata_bytes(void) {
    return PAIR_WORDS * (int64_t)sizeof(int32_t);
}

/* --- sizes --- */

/* Every rank tells every other (rows, pairs) of each device pair between them. */
static void exchange_sizes(moe_exchange *e, const moe_comm *comm, const moe_plan *plan) {
    moe_inbox *in = &e->inbox;
    int32_t n = plan->num_local;
    int64_t per_rank = 2 * (int64_t)n * n, total = per_rank * comm->size;
    moe_reserve(&e->sizes, &e->sizes_room, 2 * total, sizeof(int64_t), "sizes of the exchange");
    int64_t *send = e->sizes;
    int64_t *recv = e->sizes + total;
    int64_t *at = send;
    for (int32_t q = 0; q < comm->size; q++) {
        for (int32_t j = 0; j < n; j++) {
            for (int32_t d = q * n; d < (q + 1) * n; d++) {
                *at++ = plan->rows_to[(int64_t)j * plan->devices + d];
                *at++ = plan->pairs_to[(int64_t)j * plan->devices + d];
            }
        }
    }
    moe_comm_alltoall_i64(comm, send, recv, per_rank);
    in->num_rows = in->num_pairs = 0;
    for (int64_t i = 0; i < total / 2; i++) { /* (source rank, source device, destination device) =
                                                 row-major [D][num_local] */
        in->num_rows += in->rows_from[i] = recv[2 * i];
        in->num_pairs += in->pairs_from[i] = recv[2 * i + 1];
    }
}

static void reserve_inbox(moe_inbox *in, const moe_plan *plan, const moe_placement *placement) {
    int64_t room = in->device_room, blocks = (int64_t)plan->devices * plan->num_local;
    in->devices = plan->devices;
    in->num_local = plan->num_local;
    in->slots = placement->slots_per_device;
    moe_reserve(&in->rows_from, &in->device_room, blocks + 1, sizeof(int64_t), "inbox");
    moe_reserve(&in->pairs_from, &room, blocks + 1, sizeof(int64_t), "inbox");
    moe_reserve(&in->slot_offset, &in->slot_room, (int64_t)in->num_local * in->slots + 2,
                sizeof(int64_t), "inbox");
    if (!in->rank_row) {
        in->rank_row = moe_alloc(plan->ranks + 1, sizeof(int64_t), "inbox");
    }
}

static void reserve_inbox_rows(moe_inbox *in) {
    int64_t row_room = in->row_room, pair_room = in->pair_room, same;
    moe_reserve_varying(&in->row_pair, &in->row_room, in->num_rows + 1, sizeof(int64_t), "inbox");
    moe_reserve_varying((same = row_room, &in->row_device), &same, in->num_rows + 1,
                        sizeof(int32_t), "inbox");
    moe_reserve_varying((same = row_room, &in->row_token), &same, in->num_rows + 1, sizeof(int32_t),
                        "inbox");
    moe_reserve_varying(&in->pair_expert, &in->pair_room, in->num_pairs, sizeof(int32_t), "inbox");
    moe_reserve_varying((same = pair_room, &in->pair_weight), &same, in->num_pairs, sizeof(real),
                        "inbox");
    moe_reserve_varying((same = pair_room, &in->pair_row), &same, in->num_pairs, sizeof(int64_t),
                        "inbox");
    moe_reserve_varying((same = pair_room, &in->slot_pair), &same, in->num_pairs, sizeof(int64_t),
                        "inbox");
    moe_reserve_varying((same = pair_room, &in->pair_position), &same, in->num_pairs,
                        sizeof(int64_t), "inbox");
}

/* Room for `lists` lists of one number per rank; each use is over before the next begins. */
static int64_t *reserve_layout(moe_exchange *e, const moe_comm *comm, int64_t lists) {
    moe_reserve(&e->layout, &e->layout_room, lists * comm->size, sizeof(int64_t),
                "layout of an exchange");
    return e->layout;
}

/* --- metadata --- */

static int32_t *write_words(const moe_plan *plan, int64_t begin, int64_t end, int32_t *word) {
    for (int64_t r = begin; r < end; r++) {
        *word++ = plan->row_token[r];
        if (plan->mode == MOE_EXCHANGE_TOKEN) {
            *word++ = (int32_t)(plan->row_pair[r + 1] - plan->row_pair[r]);
        }
        for (int64_t p = plan->row_pair[r]; p < plan->row_pair[r + 1]; p++) {
            *word++ = plan->pair_expert[p];
            memcpy(word, &plan->pair_weight[p], sizeof(real));
            word += PAIR_WORDS - 1;
        }
    }
    return word;
}

/* Reads `rows` rows for local device j from words into the inbox at row r and pair p (both
 * advance). Every id is checked: what arrives must be for an expert that lives here. */
static const int32_t *read_words(moe_exchange *e,
                                 const moe_plan *plan,
                                 const moe_placement *placement,
                                 int32_t j,
                                 int64_t rows,
                                 int64_t *r,
                                 int64_t *p,
                                 const int32_t *word,
                                 const int32_t *end) {
    moe_inbox *in = &e->inbox;
    for (int64_t i = 0; i < rows; i++, ++*r) {
        if (word + head_words(plan->mode) > end) {
            goto broken;
        }
        in->row_token[*r] = *word++;
        in->row_device[*r] = j;
        in->row_pair[*r] = *p;
        int32_t count = plan->mode == MOE_EXCHANGE_TOKEN ? *word++ : 1;
        if (count < 1 || count > in->num_pairs - *p || word + (int64_t)count * PAIR_WORDS > end) {
            goto broken;
        }
        for (int32_t c = 0; c < count; c++, ++*p) {
            int32_t expert = *word++;
            if (expert < 0 || expert >= placement->num_experts ||
                placement->device[expert] != plan->first_device + j) {
                goto broken;
            }
            in->pair_expert[*p] = expert;
            in->pair_row[*p] = *r;
            memcpy(&in->pair_weight[*p], word, sizeof(real));
            word += PAIR_WORDS - 1;
        }
    }
    return word;
broken:
    moe_bug(__FILE__, __LINE__, "metadata that arrived names rows or experts that are not here");
    return end;
}

static void read_inbox(moe_exchange *e,
                       const moe_plan *plan,
                       const moe_placement *placement,
                       const int32_t *words,
                       int64_t num_words) {
    moe_inbox *in = &e->inbox;
    const int32_t *word = words, *end = words + num_words;
    int64_t r = 0, p = 0;
    for (int32_t d = 0; d < in->devices; d++) {
        if (d % in->num_local == 0) {
            in->rank_row[d / in->num_local] = r;
        }
        for (int32_t j = 0; j < in->num_local; j++) {
            word = read_words(e, plan, placement, j, in->rows_from[(int64_t)d * in->num_local + j],
                              &r, &p, word, end);
        }
    }
    in->rank_row[plan->ranks] = r;
    in->row_pair[r] = p;
    MOE_ASSERT(word == end && r == in->num_rows && p == in->num_pairs);
}

static void exchange_metadata(moe_exchange *e,
                              const moe_comm *comm,
                              const moe_plan *plan,
                              const moe_placement *placement) {
    moe_inbox *in = &e->inbox;
    int64_t heads = head_words(plan->mode);
    int64_t out = 0;
    int64_t arriving = 0;
    int64_t *sc = reserve_layout(e, comm, 4);
    int64_t *so = sc + comm->size;
    int64_t *rc = so + comm->size;
    int64_t *ro = rc + comm->size;
    int64_t per = (int64_t)plan->num_local * plan->num_local;
    for (int q = 0; q < comm->size; q++) {
        sc[q] = (plan->rank_row[q + 1] - plan->rank_row[q]) * heads +
                (plan->rank_pair[q + 1] - plan->rank_pair[q]) * PAIR_WORDS;
        rc[q] = 0;
        for (int64_t b = q * per; b < (q + 1) * per; b++) {
            rc[q] += in->rows_from[b] * heads + in->pairs_from[b] * PAIR_WORDS;
        }
        so[q] = out;
        ro[q] = arriving;
        out += sc[q];
        arriving += rc[q];
    }
    moe_reserve_varying(&e->words_out, &e->words_out_room, out, sizeof(int32_t), "metadata");
    moe_reserve_varying(&e->words_in, &e->words_in_room, arriving, sizeof(int32_t), "metadata");
    int32_t *written = write_words(plan, 0, plan->num_rows, e->words_out);
    MOE_ASSERT(written == e->words_out + out);
    moe_comm_alltoallv(comm, (moe_blocks){e->words_out, sc, so}, (moe_blocks){e->words_in, rc, ro},
                       sizeof(int32_t), e->most_rows * (heads + PAIR_WORDS));
    read_inbox(e, plan, placement, e->words_in, arriving);
}

/* Groups pairs by (local device, slot) with a counting sort, stable, so rows of a slot stay in
 * (source device, token) order. */
static void group_by_expert(moe_inbox *in, const moe_placement *placement) {
    int64_t slots = (int64_t)in->num_local * in->slots;
    memset(in->slot_offset, 0, (size_t)(slots + 2) * sizeof(int64_t));
    int64_t *cursor = in->slot_offset + 1; /* cursor[s + 1] counts, then cursor[s] = first place,
                                              then the end of s = slot_offset[s + 1] */
    for (int64_t p = 0; p < in->num_pairs; p++) {
        cursor[(int64_t)in->row_device[in->pair_row[p]] * in->slots +
               placement->slot[in->pair_expert[p]] + 1]++;
    }
    for (int64_t s = 0; s < slots; s++) {
        cursor[s + 1] += cursor[s];
    }
    for (int64_t p = 0; p < in->num_pairs; p++) {
        int64_t s = (int64_t)in->row_device[in->pair_row[p]] * in->slots +
                    placement->slot[in->pair_expert[p]],
                at = cursor[s]++;
        in->slot_pair[at] = p;
        in->pair_position[p] = at;
    }
}

/* --- payload --- */

typedef struct payload_layout {
    int64_t *send_count, *send_offset, *recv_count, *recv_offset;
} payload_layout;

/* Rows for and from each other rank; none for the own. send_packed: outgoing rows stand without the
 * own rank's block (always); receive offsets likewise for x. */
static payload_layout layout_payload(moe_exchange *e, const moe_plan *plan) {
    const moe_comm *comm = e->comm;
    int64_t *all = reserve_layout(e, comm, 4);
    int64_t out = 0;
    int64_t arriving = 0;
    payload_layout l = {all, all + comm->size, all + 2 * comm->size, all + 3 * comm->size};
    for (int q = 0; q < comm->size; q++) {
        bool own = q == comm->rank;
        l.send_count[q] = own ? 0 : plan->rank_row[q + 1] - plan->rank_row[q];
        l.recv_count[q] = own ? 0 : e->inbox.rank_row[q + 1] - e->inbox.rank_row[q];
        l.send_offset[q] = out;
        l.recv_offset[q] = arriving;
        out += l.send_count[q];
        arriving += l.recv_count[q];
    }
    return l;
}

static void pack(const moe_exchange *e, const moe_plan *plan, const real *x, int64_t hidden) {
    int64_t own_begin = plan->rank_row[e->comm->rank];
    int64_t own_end = plan->rank_row[e->comm->rank + 1];
    int64_t own = own_end - own_begin;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < plan->num_rows - own; i++) {
        int64_t r = i < own_begin ? i : i + own;
        memcpy(e->outgoing + i * hidden, x + plan->row_token[r] * hidden,
               (size_t)hidden * sizeof(real));
    }
}

/* Packs x [T,H] along the plan's rows and sends them into `rows` of the inbox. */
static void send_rows(moe_exchange *e, const moe_plan *plan, const real *x, moe_inbox_rows *rows) {
    const moe_inbox *in = &e->inbox;
    int64_t own = in->own_end - in->own_begin;
    rows->local = x;
    moe_reserve_varying(&e->outgoing, &e->outgoing_room, (plan->num_rows - own) * in->hidden,
                        sizeof(real), "rows to send");
    moe_reserve_varying(&rows->remote, &rows->room, (in->num_rows - own) * in->hidden, sizeof(real),
                        "received rows");
    pack(e, plan, x, in->hidden);
    payload_layout l = layout_payload(e, plan);
    moe_comm_alltoallv(e->comm, (moe_blocks){e->outgoing, l.send_count, l.send_offset},
                       (moe_blocks){rows->remote, l.recv_count, l.recv_offset},
                       in->hidden * (int64_t)sizeof(real), e->most_rows);
}

void moe_exchange_dispatch(moe_exchange *e,
                           const moe_comm *comm,
                           const moe_plan *plan,
                           const moe_placement *placement,
                           const real *x,
                           int64_t hidden,
                           int64_t most_pairs_global) {
    moe_inbox *in = &e->inbox;
    e->comm = comm;
    e->most_rows = most_pairs_global;
    reserve_inbox(in, plan, placement);
    exchange_sizes(e, comm, plan);
    reserve_inbox_rows(in);
    exchange_metadata(e, comm, plan, placement);
    group_by_expert(in, placement);
    in->hidden = hidden;
    in->local_token = plan->row_token + plan->rank_row[comm->rank];
    in->own_begin = in->rank_row[comm->rank];
    in->own_end = in->rank_row[comm->rank + 1];
    MOE_ASSERT(in->own_end - in->own_begin ==
               plan->rank_row[comm->rank + 1] - plan->rank_row[comm->rank]);
    send_rows(e, plan, x, &in->x);
}

void moe_exchange_dispatch_gradient(moe_exchange *e, const moe_plan *plan, const real *dy) {
    send_rows(e, plan, dy, &e->inbox.dy);
}

void moe_exchange_return_pairs(moe_exchange *e,
                               const moe_plan *plan,
                               const real *values,
                               real *returned) {
    const moe_comm *comm = e->comm;
    const moe_inbox *in = &e->inbox;
    int64_t *sc = reserve_layout(e, comm, 4);
    int64_t *so = sc + comm->size;
    int64_t *rc = so + comm->size;
    for (int q = 0; q < comm->size; q++) {
        so[q] = in->row_pair[in->rank_row[q]];
        sc[q] = in->row_pair[in->rank_row[q + 1]] - so[q];
        rc[q] = plan->rank_pair[q + 1] - plan->rank_pair[q];
    }
    if (sc[comm->rank]) {
        memcpy(returned + plan->rank_pair[comm->rank], values + so[comm->rank],
               (size_t)sc[comm->rank] * sizeof(real));
    }
    sc[comm->rank] = rc[comm->rank] = 0;
    moe_comm_alltoallv(comm, (moe_blocks){(void *)(uintptr_t)values, sc, so},
                       (moe_blocks){returned, rc, plan->rank_pair}, sizeof(real), e->most_rows);
}

/* --- combine --- */

typedef struct returned_rows { /* where the result of a plan row stands */
    const real *back, *own;
    int64_t own_begin, own_end, hidden;
} returned_rows;

static const real *returned_row(const returned_rows *b, int64_t r) {
    if (r >= b->own_begin && r < b->own_end) {
        return b->own + (r - b->own_begin) * b->hidden;
    }
    return b->back + (r < b->own_begin ? r : r - (b->own_end - b->own_begin)) * b->hidden;
}

/* to = a + b; to may be a. */
MOE_CLONES static void sum_of(real *to, const real *a, const real *b, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        to[i] = a[i] + b[i];
    }
}

/* What one device returns for a token, beginning at its row *i: its only row where it stands, or
 * the sum of its rows (ascending experts) in scratch. *i becomes the row after. */
static const real *device_sum(
    const moe_plan *plan, const returned_rows *b, int64_t *i, int64_t end, real *scratch) {
    const int64_t *row = plan->token_row;
    int32_t device = plan->row_device[row[*i]];
    const real *sum = returned_row(b, row[*i]);
    for (++*i; *i < end && plan->row_device[row[*i]] == device; ++*i) {
        sum_of(scratch, sum, returned_row(b, row[*i]), b->hidden);
        sum = scratch;
    }
    return sum;
}

/* y of one token. scratch [2, H]: the sum of a node, the sum of a device. */
static void sum_token(const moe_plan *plan,
                      const returned_rows *b,
                      int64_t t,
                      int32_t devices_per_node,
                      real *scratch,
                      real *y) {
    int64_t begin = plan->token_row_offset[t];
    int64_t end = plan->token_row_offset[t + 1];
    int64_t i = begin;
    int64_t h = b->hidden;
    if (i == end) {
        memset(y, 0, (size_t)h * sizeof(real));
    }
    while (i < end) {
        bool first_node = i == begin;
        int32_t node = plan->row_device[plan->token_row[i]] / devices_per_node;
        real *to = first_node ? y : scratch;
        const real *sum = device_sum(plan, b, &i, end, to);
        while (i < end && plan->row_device[plan->token_row[i]] / devices_per_node == node) {
            sum_of(to, sum, device_sum(plan, b, &i, end, scratch + h), h);
            sum = to;
        }
        if (!first_node) {
            sum_of(y, y, sum, h);
        } else if (sum != y) {
            memcpy(y, sum, (size_t)h * sizeof(real));
        }
    }
}

void moe_exchange_combine(
    moe_exchange *e, const moe_plan *plan, const real *results, int32_t devices_per_node, real *y) {
    const moe_comm *comm = e->comm;
    const moe_inbox *in = &e->inbox;
    int64_t hidden = in->hidden;
    payload_layout l = layout_payload(e, plan);
    /* results stand in inbox order with the own block among them: send straight from there */
    moe_comm_alltoallv(comm, (moe_blocks){(void *)(uintptr_t)results, l.recv_count, in->rank_row},
                       (moe_blocks){e->outgoing, l.send_count, l.send_offset},
                       hidden * (int64_t)sizeof(real), e->most_rows);
    returned_rows b = {e->outgoing, results + in->own_begin * hidden, plan->rank_row[comm->rank],
                       plan->rank_row[comm->rank + 1], hidden};
    moe_reserve(&e->scratch, &e->scratch_room, omp_get_max_threads() * 2 * hidden, sizeof(real),
                "combine");
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < plan->num_tokens; t++) {
        sum_token(plan, &b, t, devices_per_node, e->scratch + omp_get_thread_num() * 2 * hidden,
                  y + t * hidden);
    }
}

void moe_exchange_free(moe_exchange *e) {
    moe_inbox *in = &e->inbox;
    void *arrays[] = {e->scratch,      e->layout,         e->outgoing,   e->words_out,
                      e->words_in,     e->sizes,          in->rows_from, in->pairs_from,
                      in->rank_row,    in->row_device,    in->row_token, in->row_pair,
                      in->pair_expert, in->pair_weight,   in->pair_row,  in->slot_offset,
                      in->slot_pair,   in->pair_position, in->x.remote,  in->dy.remote};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
        moe_free(arrays[i]);
    }
    *e = (moe_exchange){0};
}
