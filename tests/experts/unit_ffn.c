/* unit_ffn.c: the table of expert types has a row for every value of model.expert_type, under its
 * name, and the matrices that moe_ffn_init makes; an FFN in bf16 rounds both factors of each
 * product, forward and backward, and nothing else; turning an FFN puts each element of its
 * matrices where it belongs, and its forward pass is that of the same FFN as it was.
 *
 * ctest: f64 */
#include <math.h>
#include <string.h>

#include "base/gemm.h"
#include "base/rng.h"
#include "check.h"
#include "config/config.h"
#include "config/value.h"
#include "experts/activation.h"
#include "experts/ffn.h"

static void test_type(enum moe_expert_type type) {
    const moe_ffn_type *row = moe_ffn_type_of(type);
    const int32_t id[2] = {0, 1};
    CHECK_MSG(strcmp(row->name, moe_config_enum_name(MOE_KEY(model, expert_type), (int)type)) == 0,
              "%s", row->name);
    moe_ffn f;
    moe_ffn_init(&f, &(moe_ffn_shape){
                         .type = type, .count = 2, .hidden = 3, .width = 4, .rank = 1, .id = id});
    CHECK_EQ((f.w1 != NULL) + (f.w2 != NULL) + (f.w3 != NULL), row->matrices);
    CHECK_EQ((f.a1 != NULL) + (f.a2 != NULL) + (f.a3 != NULL), row->adapters ? 3 : 0);
    CHECK_EQ((f.b1 != NULL) + (f.b2 != NULL) + (f.b3 != NULL), row->adapters ? 3 : 0);
    CHECK((row->forward != NULL) == (row->matrices > 0));
    CHECK((row->backward != NULL) == (row->matrices > 0));
    moe_ffn_free(&f);
}

/* A run that diverges has such numbers: they end as NaN, and not in arithmetic that is undefined.
 */
static void test_not_finite(void) {
    real h1[4] = {NAN, -NAN, INFINITY, -INFINITY}, h[4];
    moe_activation_silu(h1, NULL, h, 4);
    CHECK(isnan(h[0]) && isnan(h[1]) && h[2] > 0);
    moe_activation_swiglu(h1, h1, h, 4);
    CHECK(isnan(h[0]) && isnan(h[1]) && h[2] > 0);
}

/* --- bf16 beside a naive FFN --- */

enum { ROWS = 5, H = 7, F = 6, R = 3, CODES = 1000 };

/* To 8 bits of mantissa by scaling: rint rounds to nearest, ties to even. */
static double rounded(real x) {
    int exponent;
    frexp((float)x, &exponent);
    return ldexp(rint(ldexp((double)(float)x, 8 - exponent)), exponent - 8);
}

/* c [m,n] += sum over k of rounded a times rounded b, with the given distances between elements. */
static void add_product(int m,
                        int n,
                        int k,
                        const real *a,
                        int a_row,
                        int a_column,
                        const real *b,
                        int b_row,
                        int b_column,
                        double factor,
                        real *c) {
    for (int i = 0; i < m; i++) {
        for (int j = 0; j < n; j++) {
            double sum = 0;
            for (int l = 0; l < k; l++) {
                sum += rounded(a[i * a_row + l * a_column]) * rounded(b[l * b_row + j * b_column]);
            }
            c[i * n + j] += (real)(factor * sum);
        }
    }
}

/* y += W x + s B (A x), and the same backward; a NULL: no adapters. */
typedef struct naive_map {
    int in, out;
    const real *w, *a, *b;
    double s;
    real dw[H * F], da[R * H], db[H * R];
} naive_map;

static void naive_forward(const naive_map *m, const real *x, real *y) {
    real low[ROWS * R] = {0};
    add_product(ROWS, m->out, m->in, x, m->in, 1, m->w, 1, m->in, 1, y);
    if (m->a) {
        add_product(ROWS, R, m->in, x, m->in, 1, m->a, 1, m->in, m->s, low);
        add_product(ROWS, m->out, R, low, R, 1, m->b, 1, R, 1, y);
    }
}

static void naive_backward(naive_map *m, const real *x, const real *dy, real *dx) {
    real low[ROWS * R] = {0}, e[ROWS * R] = {0};
    add_product(m->out, m->in, ROWS, dy, 1, m->out, x, m->in, 1, 1, m->dw);
    add_product(ROWS, m->in, m->out, dy, m->out, 1, m->w, m->in, 1, 1, dx);
    if (m->a) {
        add_product(ROWS, R, m->in, x, m->in, 1, m->a, 1, m->in, m->s, low);
        add_product(m->out, R, ROWS, dy, 1, m->out, low, R, 1, 1, m->db);
        add_product(ROWS, R, m->out, dy, m->out, 1, m->b, R, 1, m->s, e);
        add_product(R, m->in, ROWS, e, 1, R, x, m->in, 1, 1, m->da);
        add_product(ROWS, m->in, R, e, R, 1, m->a, m->in, 1, 1, dx);
    }
}

static naive_map map_of(int in, int out, const real *w, const real *a, const real *b, double s) {
    return (naive_map){.in = in, .out = out, .w = w, .a = a, .b = b, .s = s};
}

static void compare(const real *x, const real *y, int n, const char *what) {
    for (int i = 0; i < n; i++) {
        CHECK_MSG(fabs((double)x[i] - (double)y[i]) <= 2e-6 * (1 + fabs((double)y[i])),
                  "%s[%d]: %g and %g", what, i, (double)x[i], (double)y[i]);
    }
}

static void test_bf16(enum moe_expert_type type) {
    const moe_ffn_type *row = moe_ffn_type_of(type);
    const int32_t id[1] = {3};
    static uint16_t codes[CODES];
    moe_ffn f;
    moe_ffn_init(&f, &(moe_ffn_shape){.type = type,
                                      .count = 1,
                                      .hidden = H,
                                      .width = F,
                                      .rank = R,
                                      .lora_alpha = 2,
                                      .id = id});
    CHECK(moe_ffn_codes(&f, ROWS) <= CODES);
    f.codes = codes;
    real x[ROWS * H], dy[ROWS * H], low[2 * ROWS * R], scratch[ROWS * (3 * F + 2 * R)];
    real h1[ROWS * F], h3[ROWS * F] = {0}, h[ROWS * F], y[ROWS * H], dx[ROWS * H];
    real n1[ROWS * F] = {0}, n3[ROWS * F] = {0}, ny[ROWS * H] = {0}, ndx[ROWS * H] = {0};
    real dh[ROWS * F] = {0}, dh3[ROWS * F] = {0};
    real g[9][H * F] = {{0}};
    moe_rng_normal((moe_rng){5, MOE_RNG_TEST}, 0, 0, 1, x, ROWS * H);
    moe_rng_normal((moe_rng){5, MOE_RNG_TEST}, 1, 0, 1, dy, ROWS * H);
    naive_map one = map_of(H, F, f.w1, f.a1, f.b1, f.lora_scale),
              two = map_of(F, H, f.w2, f.a2, f.b2, f.lora_scale),
              three = map_of(H, F, f.w3, f.a3, f.b3, f.lora_scale);
    moe_ffn_forward(&f, 0, ROWS, x, low, h1, h3, h, y);
    naive_forward(&one, x, n1);
    compare(h1, n1, ROWS * F, "h1");
    if (f.w3) {
        naive_forward(&three, x, n3);
        compare(h3, n3, ROWS * F, "h3");
    }
    naive_forward(&two, h, ny);
    compare(y, ny, ROWS * H, "y");
    moe_ffn_gradient into = {.w1 = f.rank ? NULL : g[0],
                             .w3 = f.rank || !f.w3 ? NULL : g[1],
                             .w2 = f.rank ? NULL : g[2],
                             .a1 = g[3],
                             .a3 = g[4],
                             .a2 = g[5],
                             .b1 = g[6],
                             .b3 = g[7],
                             .b2 = g[8]};
    moe_ffn_backward(&f, &into, 0, ROWS, x, h1, h3, dy, scratch, dx);
    naive_backward(&two, h, dy, dh);
    row->backward(h1, h3, dh, dh, dh3, ROWS * F);
    naive_backward(&one, x, dh, ndx);
    if (f.w3) {
        naive_backward(&three, x, dh3, ndx);
    }
    compare(dx, ndx, ROWS * H, "dx");
    if (!f.rank) {
        compare(g[0], one.dw, F * H, "dw1");
        compare(g[1], three.dw, f.w3 ? F * H : 0, "dw3");
        compare(g[2], two.dw, H * F, "dw2");
    } else {
        compare(g[3], one.da, R * H, "da1");
        compare(g[4], three.da, R * H, "da3");
        compare(g[5], two.da, R * F, "da2");
        compare(g[6], one.db, F * R, "db1");
        compare(g[7], three.db, F * R, "db3");
        compare(g[8], two.db, H * R, "db2");
    }
    moe_ffn_free(&f);
}

/* --- turned --- */

enum { TURNED = 3, WIDE = 37, DEEP = 20 }; /* FFNs, and sizes that are no multiples of a tile */

/* W [count,rows,columns] against the turned one, element by element. */
static void compare_turned(const real *w, const real *turned, int count, int rows, int columns) {
    for (int i = 0; w && i < count * rows * columns; i++) {
        const int matrix = i / (rows * columns), row = i / columns % rows, column = i % columns;
        CHECK_EQ(turned[(matrix * columns + column) * rows + row] == w[i], 1);
    }
}

static void test_turned(enum moe_expert_type type) {
    const int32_t id[TURNED] = {4, 0, 9};
    const moe_ffn_shape shape = {.type = type,
                                 .count = TURNED,
                                 .hidden = DEEP,
                                 .width = WIDE,
                                 .rank = R,
                                 .lora_alpha = 2,
                                 .id = id};
    moe_ffn f, g;
    moe_ffn_init(&f, &shape);
    moe_ffn_init(&g, &shape);
    moe_ffn_turn(&g);
    const int base = f.rank ? 1 : TURNED;
    compare_turned(f.w1, g.w1, base, WIDE, DEEP);
    compare_turned(f.w3, g.w3, base, WIDE, DEEP);
    compare_turned(f.w2, g.w2, base, DEEP, WIDE);
    compare_turned(f.a1, g.a1, TURNED, R, DEEP);
    compare_turned(f.a2, g.a2, TURNED, R, WIDE);
    compare_turned(f.b3, g.b3, TURNED, WIDE, R);
    compare_turned(f.b2, g.b2, TURNED, DEEP, R);
    real x[ROWS * DEEP], low[ROWS * R], h1[ROWS * WIDE], h3[ROWS * WIDE], y[2][ROWS * DEEP];
    moe_rng_normal((moe_rng){5, MOE_RNG_TEST}, 0, 0, 1, x, ROWS * DEEP);
    for (int i = 0; i < TURNED; i++) {
        moe_ffn_forward(&f, i, ROWS, x, low, h1, h3, h1, y[0]);
        moe_ffn_forward(&g, i, ROWS, x, low, h1, h3, h1, y[1]);
        compare(y[1], y[0], ROWS * DEEP, "y");
    }
    moe_ffn_free(&f);
    moe_ffn_free(&g);
}

int main(void) {
    for (int type = MOE_EXPERT_SWIGLU; type <= MOE_EXPERT_IDENTITY; type++) {
        RUN(test_type, type);
    }
    moe_status st = {0};
    RUN(test_not_finite);
    CHECK_EQ(moe_gemm_choose(MOE_GEMM_REFERENCE, &st), MOE_OK);
    for (int type = MOE_EXPERT_SWIGLU; type < MOE_EXPERT_IDENTITY; type++) {
        RUN(test_bf16, type);
    }
    for (int library = MOE_GEMM_AUTO; library <= MOE_GEMM_REFERENCE; library++) {
        moe_status missing = {0};
        bool there = moe_gemm_choose((enum moe_gemm_library)library, &missing) == MOE_OK;
        for (int type = MOE_EXPERT_SWIGLU; there && type <= MOE_EXPERT_IDENTITY; type++) {
            RUN(test_turned, type);
        }
    }
    CHECK_EQ(moe_alloc_live_bytes(), 0);
    return check_verdict();
}
