/* next_choice.c: overflow = next_choice, in rounds as drop.h says. The pools that this rank alone
 * holds go first and cost no collective; then those that span ranks, with one collective a round,
 * in which ranks tell how many of their pairs ask for each target. */
#include <math.h>
#include <string.h>

#include "base/scratch.h"
#include "capacity/internal.h"
#include "router/scores.h"
#include "router/select.h"
#include "router/weights.h"

typedef struct asking {
    int64_t pair, token, pool;
    int32_t expert; /* asked for in this round */
    double score;   /* of that expert, */
    double weight;  /* and its combine weight in the token's normalisation as it was */
} asking;

/* What choosing the best expert of a token takes. */
typedef struct chooser {
    moe_select select;
    double *z, *s;        /* [N] */
    int64_t *taken;       /* [N] mark of the last token that has, or has asked for, the expert */
    int64_t mark;         /* of the token that is looked at */
    double divisor;       /* of the weights of its own choice */
    moe_scratch *scratch; /* the router's */
} chooser;

/* Nothing is drawn: only the groups that a token may go to are asked for. */
static const moe_draw no_draw;

static void chooser_reserve(chooser *c, const moe_router *r) {
    *c = (chooser){.scratch = r->scratch};
    moe_select_reserve(&c->select, r, &no_draw);
    c->z = moe_scratch_take(r->scratch, 2 * (int64_t)r->num_experts, sizeof *c->z, "capacity");
    c->s = c->z + r->num_experts;
    c->taken = moe_scratch_take_zero(r->scratch, r->num_experts, sizeof *c->taken, "capacity");
}

static void chooser_free(chooser *c) {
    moe_select_free(&c->select);
    moe_scratch_give(c->scratch, c->z);
    moe_scratch_give(c->scratch, c->taken);
}

/* What an expert's pair of a local token takes a place of. */
static int32_t target_of(const moe_dropping *w, int32_t expert, int64_t token) {
    const moe_batch *b = w->job->batch;
    const int64_t number = b->first_token + token;
    if (w->job->capacity->policy != MOE_CAPACITY_DEVICE) {
        return expert;
    }
    return moe_placement_device(w->job->placement, expert, number, moe_batch_device_of(b, number));
}

/* Finds the scores, their divisor and the admitted groups of a token, and marks the experts that it
 * has. */
static void look_at_token(const moe_dropping *w, chooser *c, int64_t token) {
    const moe_drop_job *job = w->job;
    moe_scores_read_logits(job->logits, token, job->router->num_experts, c->z);
    moe_scores_fill(job->router, c->z, c->s, NULL);
    const int64_t begin = job->routing->row_offset[token],
                  count = job->routing->row_offset[token + 1] - begin;
    int32_t left_out;
    c->divisor = moe_weights_divisor(job->router, moe_select_sum(&c->select, job->router, c->z,
                                                                 c->s, job->routing->expert + begin,
                                                                 count, &left_out));
    moe_select_admit(&c->select, job->router, c->z, c->s);
    c->mark++;
    for (int64_t i = begin; i < begin + count; i++) {
        c->taken[job->routing->expert[i]] = c->mark;
        if (w->drop->server[i] >= 0) {
            c->taken[w->drop->server[i]] = c->mark;
        }
    }
}

/* Among the admitted experts with room that the token has not taken: the one with the highest
 * selection score s + b, and among equals the lowest index; -1 = there is none. */
static int32_t best_expert(const moe_dropping *w, const chooser *c, int64_t pool, int64_t token) {
    const moe_router *r = w->job->router;
    const moe_tournament *groups = &c->select.choice.tournament;
    int32_t size = groups->group_size, best = -1;
    double highest = -INFINITY;
    for (int32_t g = 0; g < groups->num_kept; g++) {
        for (int32_t e = groups->kept[g] * size, end = e + size; e < end; e++) {
            double score = c->s[e] + (r->bias ? r->bias[e] : 0);
            if (c->z[e] == -INFINITY || c->taken[e] == c->mark ||
                w->room[pool * w->targets + target_of(w, e, token)] == 0) {
                continue;
            }
            if (best >= 0 && score <= highest) {
                continue;
            }
            best = e;
            highest = score;
        }
    }
    return best;
}

/* Fills in which expert each pair asks for, and counts them by pool and target. Pairs for whom
 * nothing is left go out of the list. Returns how many still ask. */
static int64_t ask(moe_dropping *w, chooser *c, asking *list, int64_t count, int64_t *asked) {
    int64_t left = 0, token = -1;
    memset(asked, 0, (size_t)(w->num_pools * w->targets) * sizeof *asked);
    for (int64_t i = 0; i < count; i++) {
        asking a = list[i];
        if (a.token != token) {
            look_at_token(w, c, token = a.token);
        }
        a.expert = best_expert(w, c, a.pool, a.token);
        if (a.expert < 0) {
            continue;
        }
        a.score = c->s[a.expert];
        a.weight = a.score / c->divisor * moe_weights_factor(w->job->router);
        c->taken[a.expert] = c->mark;
        asked[a.pool * w->targets + target_of(w, a.expert, a.token)]++;
        list[left++] = a;
    }
    return left;
}

/* Grants as many as there is room for after those of earlier ranks (`before`). Returns how many
 * were refused; they stay in the list. */
static int64_t grant(moe_dropping *w, asking *list, int64_t count, int64_t *before) {
    moe_drop *d = w->drop;
    int64_t left = 0;
    for (int64_t i = 0; i < count; i++) {
        asking a = list[i];
        int64_t target = a.pool * w->targets + target_of(w, a.expert, a.token),
                place = before[target]++;
        if (place >= w->room[target]) {
            list[left++] = a;
            continue;
        }
        d->kept[a.pair] = 1;
        d->server[a.pair] = a.expert;
        d->slot[a.pair] = (int32_t)(w->filled[target] + place);
        w->score[a.pair] = a.score;
        w->weight[a.pair] = a.weight;
    }
    return left;
}

static void fill_up(moe_dropping *w, const int64_t *asked) {
    for (int64_t i = 0; i < w->num_pools * w->targets; i++) {
        int64_t taken = asked[i] < w->room[i] ? asked[i] : w->room[i];
        w->filled[i] += taken;
        w->room[i] -= taken;
    }
}

/* Collective. Adds up what all ranks ask of shared pools: `asked` becomes the sum over all ranks,
 * and `before` the sum over earlier ones. Returns the sum over pools. */
static int64_t share(moe_dropping *w, int64_t *asked, int64_t *before) {
    const int64_t **vector = moe_scratch_take(w->scratch, w->num_pools, sizeof *vector, "capacity");
    const int64_t **part =
        moe_scratch_take(w->scratch, w->job->comm->size, sizeof *part, "capacity");
    int64_t sum = 0;
    for (int64_t p = 0; p < w->num_pools; p++) {
        vector[p] = asked + p * w->targets;
    }
    moe_shared s = moe_shared_gather(w, w->targets, vector);
    for (int64_t p = 0; p < w->num_pools; p++) {
        int self = 0, parts = moe_shared_parts(w, &s, w->pool[p].id, part, &self);
        for (int32_t target = 0; target < w->targets && parts > 0; target++) {
            int64_t at = p * w->targets + target;
            asked[at] = 0;
            for (int q = 0; q < parts; q++) {
                before[at] += q < self ? part[q][target] : 0;
                asked[at] += part[q][target];
            }
        }
    }
    for (int64_t i = 0; i < s.first[w->job->comm->size] * s.words; i++) {
        sum += s.value[i];
    }
    moe_shared_free(&s);
    moe_scratch_give(w->scratch, vector);
    moe_scratch_give(w->scratch, part);
    return sum;
}

static bool is_shared(const moe_dropping *w, int64_t pool) {
    for (int i = 0; i < w->num_shared; i++) {
        if (w->shared_id[i] == w->pool[pool].id) {
            return true;
        }
    }
    return false;
}

/* Lists the dropped pairs of the shared, or of the other pools, in the order of tokens and choices.
 */
static int64_t list_dropped(const moe_dropping *w, bool shared, asking *list) {
    const moe_routing *r = w->job->routing;
    int64_t count = 0;
    for (int64_t p = 0; p < w->num_pools; p++) {
        for (int64_t t = w->pool[p].begin; t < w->pool[p].end && is_shared(w, p) == shared; t++) {
            for (int64_t i = r->row_offset[t]; i < r->row_offset[t + 1]; i++) {
                if (!w->drop->kept[i]) {
                    list[count++] = (asking){.pair = i, .token = t, .pool = p};
                }
            }
        }
    }
    return count;
}

void moe_next_choice_give(moe_dropping *w) {
    int64_t n = w->num_pools * w->targets;
    int64_t *asked = moe_scratch_take(w->scratch, n + 1, sizeof *asked, "capacity");
    int64_t *before = moe_scratch_take(w->scratch, n + 1, sizeof *before, "capacity");
    asking *list =
        moe_scratch_take(w->scratch, w->job->routing->num_selections, sizeof *list, "capacity");
    chooser c;
    chooser_reserve(&c, w->job->router);
    for (int shared = 0; shared < 2; shared++) {
        int64_t count = list_dropped(w, shared, list), all;
        do {
            count = ask(w, &c, list, count, asked);
            memset(before, 0, (size_t)n * sizeof *before);
            all = shared ? share(w, asked, before) : count;
            count = grant(w, list, count, before);
            fill_up(w, asked);
        } while (all > 0);
    }
    chooser_free(&c);
    moe_scratch_give(w->scratch, asked);
    moe_scratch_give(w->scratch, before);
    moe_scratch_give(w->scratch, list);
}
