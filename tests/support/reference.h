/* reference.h: the oracle: routing, f, P, the losses and their gradient, serial and naive, written
 * from the equations of docs/method.md sections 1 and 2 with libm and plain loops. Nothing here is
 * shared with src/ but the structs that say which settings are meant, and the keyed random numbers.
 */
#ifndef REFERENCE_H
#define REFERENCE_H

#include <stdint.h>

#include "balance/balance.h"
#include "router/router.h"

/* Tokens, and what the losses need to know of them. All arrays belong to the caller. */
typedef struct ref_batch {
    const moe_router *router;
    int32_t devices;
    const int32_t *device; /* [N] device of expert i */
    int64_t num_tokens;
    const double *z;      /* [T,N] logits */
    const int32_t *home;  /* [T] device that token t lives on */
    const int32_t *scope; /* [T] which scope (sequence, device, or 0) token t belongs to */
    int32_t num_scopes;
    const uint8_t *counted; /* [T] or NULL */
    int32_t comm_limit;     /* M of f'' */
    enum moe_comm_count comm_count;
    enum moe_device_p device_p;
    enum moe_importance_of importance_of;
} ref_batch;

/* Counts of one scope. */
typedef struct ref_counts {
    int64_t tokens;
    int64_t *expert; /* [N] selections */
    int64_t *device; /* [D] distinct tokens */
    int64_t *first;  /* [N] first choices */
    int32_t *chosen; /* in the first scope: [T,K] the actual experts of every token, -1 = none; else
                        NULL */
} ref_counts;

/* s [N] of one token; *lse = log sum exp z. */
void ref_scores(const moe_router *r, const double *z, double *s, double *lse);
/* s / sum s for sigmoid and sqrtsoftplus, else s. */
void ref_normalized(const moe_router *r, const double *s, double *normalized);
/* Experts in falling order of s, then index; weights; returns how many. Of the methods that rank
 * experts; those that look at all tokens of a device choose as topk does. */
int32_t ref_select(const moe_router *r,
                   const double *z,
                   const double *s,
                   int32_t *expert,
                   double *weight);
/* The same for methods that choose by key: hash, random, round_robin. */
int32_t ref_select_keyed(const moe_router *r,
                         const moe_draw *d,
                         int64_t token,
                         const double *z,
                         const double *s,
                         int32_t *expert,
                         double *weight);
/* Distinct groups among experts. */
int32_t ref_distinct_groups(const moe_router *r, const int32_t *expert, int32_t count);

/* Counts of every scope: array of num_scopes, free with ref_counts_free. */
ref_counts *ref_count(const ref_batch *b);
void ref_counts_free(ref_counts *c, int32_t num_scopes);
/* Raw losses: mean over the scopes that hold a counted token, of the loss inside each (z: mean over
 * all counted tokens); counts and choices are given, scores and weights come from b->z. */
void ref_losses(const ref_batch *b, const ref_counts *counts, double loss[MOE_NUM_LOSSES]);
/* dlogits [T,N] += d(sum_l alpha_l L_l)/dz with the counts fixed, from the closed form; without
 * importance and load. */
void ref_dlogits(const ref_batch *b,
                 const ref_counts *counts,
                 const double alpha[MOE_NUM_LOSSES],
                 double *dlogits);

#endif
