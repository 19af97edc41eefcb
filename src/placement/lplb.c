/* lplb.c: DeepSeek's linear-programming-based load balancer, written anew from its public
 * description.
 *
 * Experts are dealt to the devices as EPLB packs them, without replicas. Redundant slot j of a
 * device then copies an expert of the device at the other end of its link j: of the link's origin
 * the j-th heaviest expert, so that every link carries another one. For each batch a linear program
 * moves load along the links, from the original to its copy:
 *
 *     minimise t   such that   load of device d without copies - sum of flows out of d
 *                                                              + sum of flows into d <= t,
 *     0 <= flow <= load of the expert, and the flows of one expert together <= its load.
 *
 * Flow has a price of 1e-7 of t, so that none is moved that does not lower the busiest device. The
 * program is solved by the simplex method of GLPK. */
#include <glpk.h>
#include <math.h>

#include "base/alloc.h"
#include "placement/internal.h"

/* --- links --- */

static bool is_power_of_two(int32_t n) {
    return n > 0 && (n & (n - 1)) == 0;
}

static enum moe_links links_of(const moe_balancer_problem *p) {
    if (p->links != MOE_LINKS_AUTO) {
        return p->links;
    }
    return p->nodes == 1 && is_power_of_two(p->devices) ? MOE_LINKS_HYPERCUBE : MOE_LINKS_TORUS;
}

bool moe_links_fit(const moe_balancer_problem *p) {
    const enum moe_links links = links_of(p);
    return links == MOE_LINKS_CUBE        ? p->devices % 8 == 0
           : links == MOE_LINKS_HYPERCUBE ? is_power_of_two(p->devices)
                                          : true;
}

/* Cubes of 8 devices: a ring in each half of four, and a link to the other half. */
static int32_t cube(int32_t d, int32_t j) {
    const int32_t first = d / 4 * 4;
    if (j % 2 == 0) {
        return first + (d % 4 + 3) % 4;
    }
    return d % 8 < 4 ? d / 8 * 8 + 4 + (d + 2) % 4 : d - 4;
}

/* Dimension j mod log2 D flips one bit. */
static int32_t hypercube(int32_t d, int32_t j, int32_t devices) {
    int32_t dimensions = 0;
    while (1 << dimensions < devices) {
        dimensions++;
    }
    return dimensions == 0 ? d : d ^ (1 << (j % dimensions));
}

/* A ring in each node and a ring through the nodes, in turn; one ring where there is one node. */
static int32_t torus(int32_t d, int32_t j, int32_t devices, int32_t nodes) {
    const int32_t width = devices / nodes;
    if (nodes > 1 && (width == 1 || j % 2 == 1)) {
        return (d + devices - width) % devices;
    }
    return d / width * width + (d % width + width - 1) % width;
}

static int32_t origin(const moe_balancer_problem *p, int32_t d, int32_t j) {
    const enum moe_links links = links_of(p);
    return links == MOE_LINKS_CUBE        ? cube(d, j)
           : links == MOE_LINKS_HYPERCUBE ? hypercube(d, j, p->devices)
                                          : torus(d, j, p->devices, p->nodes);
}

/* --- placing --- */

/* The j-th heaviest of the original experts of a device. */
static int32_t heaviest(const moe_balancer_problem *p,
                        const moe_balancer_answer *a,
                        int32_t device,
                        int32_t j) {
    const int32_t n = moe_native_slots(p), *mine = a->expert + device * a->slots_per_device;
    double *load = moe_alloc(n, sizeof *load, "lplb");
    int32_t *order = moe_alloc(n, sizeof *order, "lplb");
    for (int32_t i = 0; i < n; i++) {
        load[i] = p->load[mine[i]];
    }
    moe_order_falling(load, n, order);
    const int32_t expert = mine[order[j % n]];
    moe_free(load);
    moe_free(order);
    return expert;
}

void moe_place_lplb(const moe_balancer_problem *p, moe_balancer_answer *a) {
    const int32_t n = moe_native_slots(p);
    moe_balancer_problem plain = *p;
    moe_balancer_answer originals = {0};
    plain.slots_per_device = n;
    moe_place_eplb_global(&plain, &originals);
    moe_answer_reserve(p, a, p->slots_per_device);
    for (int32_t i = 0; i < p->num_experts; i++) {
        a->expert[i / n * a->slots_per_device + i % n] = originals.expert[i];
    }
    for (int32_t d = 0; d < p->devices; d++) {
        for (int32_t j = 0; j < a->slots_per_device - n; j++) {
            a->expert[d * a->slots_per_device + n + j] = heaviest(p, a, origin(p, d, j), j);
        }
    }
    moe_split_lplb(p, a);
    moe_balancer_answer_free(&originals);
}

/* --- splitting --- */

/* The program has a row for each device and each expert, and a column for t and each copy. */
typedef struct program {
    const moe_balancer_problem *p;
    moe_balancer_answer *a;
    double scale;      /* the mean load of a device, so that t is about 1 */
    int32_t *original; /* [N] the slot of the original */
    glp_prob *glpk;
} program;

static bool is_copy(const program *g, int32_t slot) {
    return g->original[g->a->expert[slot]] != slot;
}

/* The first slot of an expert among the native ones, or of all where a run has moved experts. */
static void find_originals(program *g) {
    const int32_t native = moe_native_slots(g->p), s = g->a->slots_per_device;
    for (int32_t e = 0; e < g->p->num_experts; e++) {
        g->original[e] = -1;
    }
    for (int beyond = 0; beyond < 2; beyond++) {
        for (int32_t slot = 0; slot < g->a->slots; slot++) {
            if (g->original[g->a->expert[slot]] < 0 && (slot % s >= native) == beyond) {
                g->original[g->a->expert[slot]] = slot;
            }
        }
    }
}

static void add_rows(program *g) {
    const moe_balancer_problem *p = g->p;
    double *load = moe_alloc_zero(p->devices, sizeof *load, "lplb");
    for (int32_t e = 0; e < p->num_experts; e++) {
        load[g->original[e] / g->a->slots_per_device] += p->load[e] / g->scale;
    }
    glp_add_rows(g->glpk, p->devices + p->num_experts);
    for (int32_t d = 0; d < p->devices; d++) {
        glp_set_row_bnds(g->glpk, 1 + d, GLP_UP, 0, -load[d]);
    }
    for (int32_t e = 0; e < p->num_experts; e++) {
        glp_set_row_bnds(g->glpk, 1 + p->devices + e, GLP_UP, 0, p->load[e] / g->scale);
    }
    moe_free(load);
}

/* t stands in the row of every device with -1. */
static void add_bound(program *g) {
    const int32_t devices = g->p->devices;
    int *row = moe_alloc(devices + 1, sizeof *row, "lplb");
    double *value = moe_alloc(devices + 1, sizeof *value, "lplb");
    for (int32_t d = 1; d <= devices; d++) {
        row[d] = d;
        value[d] = -1;
    }
    const int t = glp_add_cols(g->glpk, 1);
    glp_set_col_bnds(g->glpk, t, GLP_LO, 0, 0);
    glp_set_obj_coef(g->glpk, t, 1);
    glp_set_mat_col(g->glpk, t, devices, row, value);
    moe_free(row);
    moe_free(value);
}

static void add_flow(program *g, int32_t slot) {
    const int32_t e = g->a->expert[slot], s = g->a->slots_per_device;
    const int32_t from = g->original[e] / s, to = slot / s;
    const int row[] = {0, 1 + to, 1 + from, 1 + g->p->devices + e};
    const double value[] = {0, 1, -1, 1};
    const int flow = glp_add_cols(g->glpk, 1);
    glp_set_obj_coef(g->glpk, flow, 1e-7);
    if (from == to) { /* beside its original: a copy that can serve nothing */
        glp_set_col_bnds(g->glpk, flow, GLP_FX, 0, 0);
        return;
    }
    glp_set_col_bnds(g->glpk, flow, GLP_LO, 0, 0);
    glp_set_mat_col(g->glpk, flow, 3, row, value);
}

/* Takes the flows over, which the solver keeps within its tolerance only. */
static void take_flows(program *g) {
    moe_balancer_answer *a = g->a;
    for (int32_t e = 0; e < g->p->num_experts; e++) {
        a->served[g->original[e]] = g->p->load[e];
    }
    int column = 2;
    for (int32_t slot = 0; slot < a->slots; slot++) {
        if (is_copy(g, slot)) {
            double *left = &a->served[g->original[a->expert[slot]]];
            const double flow = glp_get_col_prim(g->glpk, column++) * g->scale;
            a->served[slot] = fmin(fmax(flow, 0), *left);
            *left -= a->served[slot];
        }
    }
}

static void solve(program *g) {
    glp_smcp settings;
    glp_term_out(GLP_OFF);
    glp_init_smcp(&settings);
    settings.msg_lev = GLP_MSG_OFF;
    const int failed = glp_simplex(g->glpk, &settings);
    MOE_ASSERT(!failed && glp_get_status(g->glpk) == GLP_OPT);
}

void moe_split_lplb(const moe_balancer_problem *p, moe_balancer_answer *a) {
    program g = {.p = p, .a = a, .scale = moe_problem_mean(p)};
    g.scale = g.scale > 0 ? g.scale : 1;
    g.original = moe_alloc(p->num_experts, sizeof *g.original, "lplb");
    g.glpk = glp_create_prob();
    moe_answer_count(p, a);
    find_originals(&g);
    add_rows(&g);
    add_bound(&g);
    for (int32_t slot = 0; slot < a->slots; slot++) {
        if (is_copy(&g, slot)) {
            add_flow(&g, slot);
        }
    }
    solve(&g);
    take_flows(&g);
    glp_delete_prob(g.glpk);
    moe_free(g.original);
}
