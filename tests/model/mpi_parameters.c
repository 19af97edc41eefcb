/* mpi_parameters.c: sums over devices in their tree, reduced gradients and the norm, against a
 * naive serial tree and against all devices on one rank.
 *
 * ctest: f64 */
#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "check.h"
#include "model/device_tree.h"
#include "model/parameters.h"

static const int32_t num_devices[] = {1, 2, 3, 4, 6, 8, 12, 24, 40, 64};
enum { NUM_DEVICES = sizeof num_devices / sizeof *num_devices };

/* Device d's numbers of one vector: of very different size, so that every order of additions has
 * its own bits. */
static void make_partial(int32_t device, uint64_t vector, int64_t count, real *out) {
    moe_rng_normal((moe_rng){11, MOE_RNG_TEST}, vector, (uint64_t)device, 1, out, count);
    for (int64_t i = 0; i < count; i++) {
        out[i] *= (real)ldexp(1, (int)((i * 7 + device * 5) % 23) - 11);
    }
}

/* The definition, on one rank: level s adds device d + s into device d, d a multiple of 2 s. */
static real *naive_tree(int32_t devices, uint64_t vector, int64_t count) {
    real *rows = moe_alloc(devices * count + 1, sizeof *rows, "test");
    for (int32_t d = 0; d < devices; d++) {
        make_partial(d, vector, count, rows + d * count);
    }
    for (int32_t s = 1; s < devices; s *= 2) {
        for (int32_t d = 0; d + s < devices; d += 2 * s) {
            for (int64_t i = 0; i < count; i++) {
                rows[d * count + i] += rows[(d + s) * count + i];
            }
        }
    }
    return rows;
}

static void check_tree(const moe_comm *comm, int32_t devices, int64_t count) {
    int32_t local = devices / comm->size;
    real *partials = moe_alloc(local * count + 1, sizeof *partials, "test"),
         *sum = moe_alloc_zero(count + 1, sizeof *sum, "test");
    for (int32_t j = 0; j < local; j++) {
        make_partial(comm->rank * local + j, (uint64_t)count, count, partials + j * count);
    }
    real *expected = naive_tree(devices, (uint64_t)count, count), before = partials[0];
    moe_device_tree *tree = moe_device_tree_new(comm, devices, local, count);
    moe_device_tree_sum(tree, comm, &(moe_device_vector){partials, count, sum}, 1);
    moe_device_tree_free(tree);
    CHECK_MSG(memcmp(sum, expected, (size_t)count * sizeof *sum) == 0, "%d devices, %lld numbers",
              devices, (long long)count);
    CHECK(count == 0 || partials[0] == before);
    moe_free(partials);
    moe_free(sum);
    moe_free(expected);
}

/* --- the table --- */

enum { LONG = 20000, SHORT = 3, EXPERT = 9001, PER_DEVICE = 2 };

/* A table of two replicated parameters and one of experts with its gradients, for the devices of
 * one rank. */
typedef struct made {
    moe_parameters all;
    real *long_value, *short_value, *expert_value;
    int32_t *id;
    int index[3];
} made;

static void make_table(made *m, int32_t devices, int32_t first, int32_t local) {
    int32_t slots = local * PER_DEVICE;
    m->long_value = moe_alloc_zero(LONG, sizeof(real), "test");
    m->short_value = moe_alloc_zero(SHORT, sizeof(real), "test");
    m->expert_value = moe_alloc_zero((int64_t)slots * EXPERT, sizeof(real), "test");
    m->id = moe_alloc(slots, sizeof *m->id, "test");
    moe_parameters_init(&m->all, devices, local);
    m->index[0] = moe_parameters_add(&m->all, "gate", true, LONG, m->long_value);
    for (int32_t i = 0; i < slots; i++) {
        m->id[i] = first * PER_DEVICE + i;
    }
    m->index[1] = moe_parameters_add_experts(&m->all, "experts", slots, devices * PER_DEVICE,
                                             EXPERT, m->id, m->expert_value);
    m->index[2] = moe_parameters_add(&m->all, "norm", false, SHORT, m->short_value);
    for (int32_t j = 0; j < local; j++) {
        make_partial(first + j, 1, LONG, m->all.p[m->index[0]].partial + (int64_t)j * LONG);
        make_partial(first + j, 2, SHORT, m->all.p[m->index[2]].partial + (int64_t)j * SHORT);
    }
    for (int32_t i = 0; i < slots; i++) {
        make_partial(m->id[i], 3, EXPERT, m->all.p[m->index[1]].gradient + (int64_t)i * EXPERT);
    }
}

static void free_table(made *m) {
    moe_parameters_free(&m->all);
    moe_free(m->long_value);
    moe_free(m->short_value);
    moe_free(m->expert_value);
    moe_free(m->id);
}

/* This rank alone, with all devices. */
static moe_comm alone(const moe_comm *comm) {
    moe_comm one = *comm;
    one.comm = MPI_COMM_SELF;
    one.rank = one.local_rank = 0;
    one.size = one.local_size = one.num_hosts = 1;
    return one;
}

static double naive_norm(const moe_parameters *all) {
    long double sum = 0;
    for (int i = 0; i < all->num; i++) {
        for (int64_t k = 0; k < all->p[i].count * all->p[i].size; k++) {
            sum += (long double)all->p[i].gradient[k] * (long double)all->p[i].gradient[k];
        }
    }
    return (double)sqrtl(sum);
}

/* Gradients and norm have the same bits on these ranks as with all devices on one. */
static void check_reduce(const moe_comm *comm, int32_t devices, double scale) {
    made here, whole;
    moe_comm one = alone(comm);
    int32_t local = devices / comm->size, first = comm->rank * local;
    const char *worst;
    make_table(&here, devices, first, local);
    make_table(&whole, devices, 0, devices);
    for (int round = 0; round < 2; round++) {
        int64_t bytes = 5, bytes_whole = 5;
        moe_parameters_reduce(&here.all, comm, round ? 1 : scale, &bytes);
        moe_parameters_reduce(&whole.all, &one, round ? 1 : scale, &bytes_whole);
        CHECK_EQ(bytes, 5 + (int64_t)devices * (int64_t)(LONG + SHORT) * (int64_t)sizeof(real));
        CHECK_EQ(bytes, bytes_whole);
        const moe_parameter *p = here.all.p, *q = whole.all.p;
        real *expected = naive_tree(devices, 1, LONG);
        for (int64_t i = 0; i < LONG; i++) {
            expected[i] *= (real)(round ? 1 : scale);
        }
        CHECK_MSG(memcmp(p[0].gradient, expected, LONG * sizeof(real)) == 0, "%d devices", devices);
        moe_free(expected);
        CHECK_MSG(memcmp(p[0].gradient, q[0].gradient, LONG * sizeof(real)) == 0, "%d devices",
                  devices);
        CHECK_MSG(memcmp(p[2].gradient, q[2].gradient, SHORT * sizeof(real)) == 0, "%d devices",
                  devices);
        size_t experts = (size_t)p[1].size * PER_DEVICE * (size_t)local;
        CHECK_MSG(memcmp(p[1].gradient, q[1].gradient + (int64_t)first * PER_DEVICE * EXPERT,
                         experts * sizeof(real)) == 0,
                  "%d devices", devices);
        double norm = moe_parameters_gradient_norm(&here.all, comm, &worst),
               norm_whole = moe_parameters_gradient_norm(&whole.all, &one, &worst);
        CHECK_MSG(norm == norm_whole && worst == NULL, "%d devices: %.17g, %.17g", devices, norm,
                  norm_whole);
        CHECK_NEAR(norm, naive_norm(&whole.all), 1e-14);
    }
    int64_t live = moe_alloc_live_bytes(), ignored = 0;
    moe_parameters_reduce(&here.all, comm, scale, &ignored);
    moe_parameters_gradient_norm(&here.all, comm, &worst);
    CHECK_EQ(moe_alloc_live_bytes(), live);
    moe_parameters_clear_gradients(&here.all);
    CHECK(moe_parameters_gradient_norm(&here.all, comm, &worst) == 0);
    moe_parameters_reduce(&here.all, comm, 1, &ignored);
    CHECK(moe_parameters_gradient_norm(&here.all, comm, &worst) == 0);
    free_table(&here);
    free_table(&whole);
}

/* Gradients far from 1 keep their norm's digits. */
static void check_sizes(const moe_comm *comm, double size) {
    made m;
    const char *worst;
    make_table(&m, comm->size, comm->rank, 1);
    for (int i = 0; i < m.all.num; i++) {
        for (int64_t k = 0; k < m.all.p[i].count * m.all.p[i].size; k++) {
            m.all.p[i].gradient[k] = (real)size;
        }
    }
    double elements = LONG + SHORT + (double)comm->size * PER_DEVICE * EXPERT;
    CHECK_NEAR(moe_parameters_gradient_norm(&m.all, comm, &worst),
               (double)(real)size * sqrt(elements), 1e-12);
    free_table(&m);
}

/* The first bad parameter of the table is named, with the lowest rank that has it, on all ranks. */
static void check_bad(const moe_comm *comm, double bad) {
    made m;
    const char *worst = NULL;
    int last = comm->size - 1;
    make_table(&m, comm->size, comm->rank, 1);
    if (comm->rank == last) {
        m.all.p[1].gradient[EXPERT + 5] = (real)bad;
    }
    CHECK(isnan(moe_parameters_gradient_norm(&m.all, comm, &worst)));
    CHECK(worst && strcmp(worst, "experts") == 0);
    CHECK_EQ(m.all.worst_rank, last);
    m.all.p[0].gradient[LONG - 1] = (real)bad;
    CHECK(isnan(moe_parameters_gradient_norm(&m.all, comm, &worst)));
    CHECK(worst && strcmp(worst, "gate") == 0);
    CHECK_EQ(m.all.worst_rank, 0);
    free_table(&m);
}

/* Many entries: the table moves, its contents do not change. */
static void check_growth(void) {
    moe_parameters all;
    real value[40][3] = {{0}};
    char name[24];
    moe_parameters_init(&all, 4, 2);
    for (int i = 0; i < 40; i++) {
        snprintf(name, sizeof name, "tensor%d", i);
        CHECK_EQ(moe_parameters_add(&all, name, i % 2, 3, value[i]), i);
    }
    for (int i = 0; i < 40; i++) {
        snprintf(name, sizeof name, "tensor%d", i);
        CHECK_STR(all.p[i].name, name);
        CHECK(all.p[i].value == value[i] && all.p[i].decay == i % 2 && all.p[i].partial &&
              all.p[i].gradient && !all.p[i].m);
    }
    moe_parameters_free(&all);
}

int main(int argc, char **argv) {
    static const int64_t count[] = {0, 1, 2, 7, 63, 1000, 70001};
    moe_comm comm;
    moe_comm_init(&comm, &argc, &argv);
    for (int i = 0; i < NUM_DEVICES; i++) {
        if (num_devices[i] % comm.size) {
            continue;
        }
        for (size_t k = 0; k < sizeof count / sizeof *count; k++) {
            RUN(check_tree, &comm, num_devices[i], count[k]);
        }
        RUN(check_reduce, &comm, num_devices[i], 0.25);
    }
    for (int32_t local = 1; local < 12; local++) { /* uneven numbers: subtrees end across ranks */
        RUN(check_tree, &comm, local * comm.size, 63);
    }
    moe_comm small = comm;
    small.max_count = 100; /* several rounds of the Alltoallv, broadcasts for the allgather */
    RUN(check_tree, &small, 8 * comm.size, 777);
    RUN(check_sizes, &comm, 1e-25);
    RUN(check_sizes, &comm, 1);
    RUN(check_sizes, &comm, 1e18);
    RUN(check_bad, &comm, NAN);
    RUN(check_bad, &comm, INFINITY);
    RUN(check_growth);
    CHECK_EQ(moe_alloc_live_bytes(), 0);
    int verdict = check_verdict_mpi(comm.comm);
    moe_comm_finalize(&comm);
    return verdict;
}
