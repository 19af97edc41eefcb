/* select.h: the experts of one token and their weights, with working memory that lives for many
 * tokens. docs/method.md sections 1.3 to 1.6. */
#ifndef MOESIM_ROUTER_SELECT_H
#define MOESIM_ROUTER_SELECT_H

#include <stdint.h>

#include "router/methods.h"
#include "router/settings.h"

typedef struct moe_select {
    moe_chooser choice;   /* the caller sets its token, and its factor where the device has one */
    int32_t *expert;      /* [N] the chosen, before ordering */
    double *s;            /* [N] their unbiased scores */
    double *ordered;      /* [N] the same in the order of the routing */
    moe_scratch *scratch; /* the router's: where the memory comes from */
} moe_select;

/* Local. Working memory for router r; one for each thread. draw must stay valid as long as the
 * memory is used; it may be NULL for methods that leave nothing to chance. Free with
 * moe_select_free. */
void moe_select_reserve(moe_select *w, const moe_router *r, const moe_draw *draw);
void moe_select_free(moe_select *w);
/* Local. The same for moe_select_sum only: takes no memory where no expert is left out by chance.
 */
void moe_select_reserve_for_sum(moe_select *w, const moe_router *r);

/* Local. Chooses up to moe_method_most experts of one token from its scores s [N] and logits z [N],
 * which tell who is disabled: expert [most] in falling order of s, then of index; returns how many.
 * weight [most] in double, or NULL where only the choice is asked for. may_be_disabled = 0 promises
 * that no z is -inf. Methods that look at all tokens of a device choose here as topk does, with
 * what the caller set as factor. */
int32_t moe_select_experts(moe_select *w,
                           const moe_router *r,
                           const double *z,
                           const double *s,
                           int may_be_disabled,
                           int32_t *expert,
                           double *weight);

/* Local. The same for a token whose experts are known: those with chosen [N] = 1. */
int32_t moe_select_given(moe_select *w,
                         const moe_router *r,
                         const double *s,
                         const uint8_t *chosen,
                         int32_t *expert,
                         double *weight);

/* Local. The same for one token alone, whose global id is `token`: takes working memory anew for
 * each call. Its slow and obvious twin is ref_select of tests/support/reference.c. */
int32_t moe_select_token(const moe_router *r,
                         const moe_draw *draw,
                         int64_t token,
                         const double *z,
                         const double *s,
                         int32_t *expert,
                         double *weight);

/* Local. Only the groups that a token may go to: those in w->choice.tournament.kept. Returns how
 * many; 0 for methods that rank no experts. */
int32_t moe_select_admit(moe_select *w, const moe_router *r, const double *z, const double *s);

/* Local. The sum of the scores s [N] of a token's experts [count], and of the second best one where
 * chance left it out, since g1 = s1 / (s1 + s2) then too. *left_out is that expert, or -1. w is of
 * moe_select_reserve or moe_select_reserve_for_sum. */
double moe_select_sum(moe_select *w,
                      const moe_router *r,
                      const double *z,
                      const double *s,
                      const int32_t *expert,
                      int64_t count,
                      int32_t *left_out);

/* Local. Why a token has its experts: selection [N] = what they are ranked by (-inf = disabled);
 * with a group limit, of_group [groups] = the groups' scores and admitted [groups] = 1 where the
 * token may go. factor [N] as in moe_chooser, or NULL. */
void moe_select_reasons(const moe_router *r,
                        const double *z,
                        const double *s,
                        const double *factor,
                        double *selection,
                        double *of_group,
                        double *admitted);

#endif
