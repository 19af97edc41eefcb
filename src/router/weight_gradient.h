/* weight_gradient.h: from the gradient of the combine weights back to the logits. The selection is
 * fixed; g is differentiated through its scores, its normalisation and its scaling. docs/method.md
 * sections 1.6 and 5. */
#ifndef MOESIM_ROUTER_WEIGHT_GRADIENT_H
#define MOESIM_ROUTER_WEIGHT_GRADIENT_H

#include "data/batch.h"
#include "router/routing.h"
#include "router/select.h"
#include "router/settings.h"

/* The weights of a token: of its experts [count], and of who serves each pair where that may be
 * another one, -1 = nobody; server NULL: their own expert. */
typedef struct moe_weighted {
    const int32_t *expert, *server;
    int64_t count;
} moe_weighted;

static inline int32_t moe_weighted_expert(const moe_weighted *w, int64_t k) {
    return w->server ? w->server[k] : w->expert[k];
}

/* Local. dlogits [T,N] (double) += d/dz of sum_k dg_k g_k(z), dg [num_selections] in the order of
 * the routing. server [num_selections] or NULL as in moe_weighted. OpenMP over tokens. */
void moe_weight_gradient(const moe_router *r,
                         moe_logits logits,
                         const moe_routing *routing,
                         const int32_t *server,
                         const real *dg,
                         double *dlogits);

/* Local. The same for one token with scores s [N]: dz [N] +=; ds [N] and w are working memory, w
 * of moe_select_reserve_for_sum. */
void moe_weight_gradient_token(moe_select *w,
                               const moe_router *r,
                               const double *z,
                               const double *s,
                               const moe_weighted *weighted,
                               const double *dg,
                               double *ds,
                               double *dz);

#endif
