/* mpi_dense_layers.c: a dense layer beside a naive one in double: y, dx and the gradients of its
 * parameters, summed over the devices of all ranks.
 *
 * ctest: f64 gemm np=1,2,4 timeout=60 */
#include <math.h>
#include <string.h>

#include "base/gemm.h"
#include "base/rng.h"
#include "check.h"
#include "model_fixture.h"
#include "world/comm.h"

enum { H = 6, F = 7, LAYER = 1 };

static const double TOLERANCE = sizeof(real) == sizeof(float) ? 1e-4 : 1e-11;

typedef model_fixture fixture;

static const char common[] = "run.mode=train cluster.devices=4 model.num_experts=4 "
                             "model.hidden_size=6 model.moe_intermediate_size=3 router.top_k=2 "
                             "model.num_layers=3 model.first_dense_layers=2 "
                             "model.intermediate_size=7 data.tokens_per_device=5 ";

/* --- the naive one --- */

typedef struct naive {
    enum moe_expert_type type;
    double norm[H], w1[F][H], w3[F][H], w2[H][F];
    double d_norm[H], d_w1[F][H], d_w3[F][H], d_w2[H][F]; /* sums over all tokens */
} naive;

static double gelu(double x) {
    return 0.5 * x * (1 + erf(x / sqrt(2)));
}

static double gelu_slope(double x) {
    return 0.5 * (1 + erf(x / sqrt(2))) + x * exp(-x * x / 2) / sqrt(2 * acos(-1));
}

static double silu(double x) {
    return x / (1 + exp(-x));
}

static double silu_slope(double x) {
    const double s = 1 / (1 + exp(-x));
    return s * (1 + x * (1 - s));
}

/* y of one token, and from dy its dx and what it adds to the gradients. */
static void naive_token(naive *n, const double *x, const double *dy, double *y, double *dx) {
    const bool gated = n->type == MOE_EXPERT_SWIGLU;
    double u[H], du[H] = {0}, squares = 0, dot = 0;
    for (int i = 0; i < H; i++) {
        squares += x[i] * x[i];
        y[i] = 0;
    }
    const double r = 1 / sqrt(squares / H + 1e-6);
    for (int i = 0; i < H; i++) {
        u[i] = x[i] * r * n->norm[i];
    }
    for (int f = 0; f < F; f++) {
        double a = 0, b = 0, dh = 0;
        for (int i = 0; i < H; i++) {
            a += n->w1[f][i] * u[i];
            b += n->w3[f][i] * u[i];
            dh += n->w2[i][f] * dy[i];
        }
        const double h = gated ? silu(a) * b : gelu(a);
        const double da = dh * (gated ? silu_slope(a) * b : gelu_slope(a)), db = dh * silu(a);
        for (int i = 0; i < H; i++) {
            y[i] += n->w2[i][f] * h;
            n->d_w2[i][f] += dy[i] * h;
            n->d_w1[f][i] += da * u[i];
            n->d_w3[f][i] += gated ? db * u[i] : 0;
            du[i] += da * n->w1[f][i] + (gated ? db * n->w3[f][i] : 0);
        }
    }
    for (int i = 0; i < H; i++) {
        n->d_norm[i] += du[i] * x[i] * r;
        dot += n->norm[i] * du[i] * x[i];
    }
    for (int i = 0; i < H; i++) {
        dx[i] = r * (n->norm[i] * du[i] - x[i] * r * r / H * dot);
    }
}

static void widen(double *wide, const real *x, int64_t n) {
    for (int64_t i = 0; i < n && x; i++) {
        wide[i] = (double)x[i];
    }
}

static naive naive_of(const moe_dense_layer *layer) {
    naive n = {.type = layer->ffn.type};
    widen(n.norm, layer->norm, H);
    widen(&n.w1[0][0], layer->ffn.w1, (int64_t)F * H);
    widen(&n.w3[0][0], layer->ffn.w3, (int64_t)F * H);
    widen(&n.w2[0][0], layer->ffn.w2, (int64_t)H * F);
    return n;
}

/* --- compared --- */

static void compare(const char *settings,
                    const char *what,
                    const real *x,
                    const double *y,
                    int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        CHECK_MSG(fabs((double)x[i] - y[i]) <= TOLERANCE * (1 + fabs(y[i])),
                  "%s: %s[%lld] is %.12g, naive %.12g", settings, what, (long long)i, (double)x[i],
                  y[i]);
    }
}

static const moe_parameter *parameter(const fixture *f, const char *name) {
    const moe_parameters *all = &f->training.parameters;
    for (int i = 0; i < all->num; i++) {
        if (strcmp(all->p[i].name, name) == 0) {
            return &all->p[i];
        }
    }
    CHECK_MSG(false, "there is no %s", name);
    return &all->p[0];
}

static void token_vector(int64_t token, uint64_t key, real *x) {
    moe_rng_normal((moe_rng){21, MOE_RNG_TEST}, (uint64_t)token, key, 1, x, H);
}

/* What every rank can know: all tokens, through the naive layer. y and dx are those of here. */
static void naive_pass(const fixture *f, naive *n, double *y, double *dx) {
    const moe_batch *b = &f->batch;
    for (int64_t t = 0; t < b->num_tokens_global; t++) {
        real x[H], dy[H];
        double wide_x[H], wide_dy[H], own_y[H], own_dx[H];
        token_vector(t, 1, x);
        token_vector(t, 2, dy);
        widen(wide_x, x, H);
        widen(wide_dy, dy, H);
        naive_token(n, wide_x, wide_dy, own_y, own_dx);
        if (t >= b->first_token && t < b->first_token + b->num_tokens) {
            memcpy(y + (t - b->first_token) * H, own_y, sizeof own_y);
            memcpy(dx + (t - b->first_token) * H, own_dx, sizeof own_dx);
        }
    }
}

static void check_settings(const moe_comm *comm, const char *settings) {
    fixture f;
    int64_t bytes = 0;
    model_fixture_init(&f, comm, common, settings, 0);
    moe_dense_layers *d = &f.stack.dense;
    CHECK_MSG(d->num_layers == 2 && f.stack.num_layers == 1 && f.stack.layer[0].depth == 2,
              "%d dense layers, %d of experts", d->num_layers, f.stack.num_layers);
    for (int i = 0; i < H && d->layer[LAYER].norm; i++) {
        d->layer[LAYER].norm[i] = (real)(1 + 0.3 * cos(i));
    }
    naive n = naive_of(&d->layer[LAYER]);
    const int64_t numbers = f.batch.num_tokens * H;
    real *x = moe_alloc(numbers, sizeof *x, "test"), *y = moe_alloc(numbers, sizeof *y, "test");
    real *dy = moe_alloc(numbers, sizeof *dy, "test"), *dx = moe_alloc(numbers, sizeof *dx, "test");
    double *naive_y = moe_alloc(numbers, sizeof *naive_y, "test");
    double *naive_dx = moe_alloc(numbers, sizeof *naive_dx, "test");
    for (int64_t t = 0; t < f.batch.num_tokens; t++) {
        token_vector(f.batch.first_token + t, 1, x + t * H);
        token_vector(f.batch.first_token + t, 2, dy + t * H);
    }
    naive_pass(&f, &n, naive_y, naive_dx);
    moe_parameters_clear_gradients(&f.training.parameters);
    moe_dense_layers_forward(d, LAYER, x, y);
    moe_dense_layers_backward(d, LAYER, dy, dx);
    moe_parameters_reduce(&f.training.parameters, comm, 1, &bytes);
    compare(settings, "y", y, naive_y, numbers);
    compare(settings, "dx", dx, naive_dx, numbers);
    compare(settings, "norm", parameter(&f, "layer1.norm")->gradient, n.d_norm, H);
    compare(settings, "w1", parameter(&f, "layer1.dense.w1")->gradient, &n.d_w1[0][0],
            (int64_t)F * H);
    compare(settings, "w2", parameter(&f, "layer1.dense.w2")->gradient, &n.d_w2[0][0],
            (int64_t)H * F);
    if (n.type == MOE_EXPERT_SWIGLU) {
        compare(settings, "w3", parameter(&f, "layer1.dense.w3")->gradient, &n.d_w3[0][0],
                (int64_t)F * H);
    }
    CHECK_MSG(!parameter(&f, "layer1.dense.w1")->expert, "a dense layer is expert parallel");
    moe_free(x);
    moe_free(y);
    moe_free(dy);
    moe_free(dx);
    moe_free(naive_y);
    moe_free(naive_dx);
    model_fixture_free(&f);
}

int main(int argc, char **argv) {
    static const char *const settings[] = {
        "model.expert_type=swiglu",
        "model.expert_type=gelu",
        "model.expert_type=lora model.lora_rank=2 train.recompute=yes",
    };
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    moe_gemm_init();
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
        RUN(check_settings, &comm, settings[i]);
    }
    int verdict = check_verdict_mpi(comm.comm);
    moe_comm_finalize(&comm);
    return verdict;
}
