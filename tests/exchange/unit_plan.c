/* unit_plan.c: the plan against the routing it is made from, over random routings, all modes, and
 * every way to spread devices over ranks.
 *
 * ctest: f64 */
#include <string.h>

#include "base/rng.h"
#include "base/status.h"
#include "check.h"
#include "exchange/plan.h"
#include "exchange/row_format.h"

typedef struct shape {
    int64_t tokens;
    int32_t devices, experts, k;
    bool ragged;
} shape;

static uint64_t draw(uint64_t seed, uint64_t a, uint64_t b, uint64_t below) {
    return moe_rng_bits((moe_rng){seed, MOE_RNG_TEST}, a, b, 0) % below;
}

/* Keyed random distinct experts for the tokens of a batch; with ragged, 0 .. k of them. */
static void random_routing(const moe_batch *b, shape s, uint64_t seed, moe_routing *r) {
    moe_routing_reserve(r, b->num_tokens, s.k);
    int64_t at = 0;
    for (int64_t t = 0; t < b->num_tokens; t++) {
        uint64_t id = (uint64_t)(b->first_token + t);
        int32_t k = s.ragged ? (int32_t)draw(seed, id, 1000, (uint64_t)s.k + 1) : s.k;
        r->row_offset[t] = at;
        int32_t first = (int32_t)draw(seed, id, 2000, (uint64_t)s.experts),
                step = 1 + (int32_t)draw(seed, id, 3000, 3);
        for (int32_t i = 0; i < k; i++) {
            r->expert[at] = (first + i * step) % s.experts; /* distinct: k * step <= experts */
            r->weight[at] = (real)(id % 97 + (uint64_t)i);
            at++;
        }
    }
    r->row_offset[b->num_tokens] = at;
    r->num_selections = at;
}

/* Where a row for `device` of a token of device `source` stops first. */
static int32_t naive_stop(const moe_placement *p,
                          enum moe_exchange_mode mode,
                          int32_t device,
                          int32_t source) {
    int32_t per_node = p->devices_per_node;
    return mode == MOE_EXCHANGE_TWO_LEVEL ? device / per_node * per_node + source % per_node
                                          : device;
}

/* Rows from device to device, counted directly from the routing. */
static void naive_matrix(const moe_batch *b,
                         const moe_placement *p,
                         const moe_routing *r,
                         enum moe_exchange_mode mode,
                         int64_t *matrix) {
    for (int32_t j = 0; j < b->num_local_devices; j++) {
        for (int64_t t = b->device_offset[j]; t < b->device_offset[j + 1]; t++) {
            for (int32_t d = 0; d < b->devices; d++) {
                int64_t here = 0;
                for (int64_t i = r->row_offset[t]; i < r->row_offset[t + 1]; i++) {
                    here += naive_stop(p, mode, p->device[r->expert[i]], b->first_device + j) == d;
                }
                matrix[(int64_t)(b->first_device + j) * b->devices + d] +=
                    mode == MOE_EXCHANGE_SELECTION ? here : here > 0;
            }
        }
    }
}

static void check_shape(shape s, enum moe_exchange_mode mode, uint64_t seed) {
    moe_placement placement;
    moe_placement_block(&placement, s.experts, s.devices);
    placement.devices_per_node = s.devices % 4 == 0 && seed % 2 ? s.devices / 4 : s.devices;
    int64_t cells = (int64_t)s.devices * s.devices;
    int64_t whole[64 * 64] = {0};
    int64_t parts[64 * 64] = {0};
    for (int32_t ranks = 1; ranks <= s.devices; ranks++) {
        if (s.devices % ranks) {
            continue;
        }
        memset(parts, 0, sizeof parts);
        moe_plan plan = {0};
        moe_routing routing = {0};
        for (int32_t rank = 0; rank < ranks; rank++) {
            moe_batch b;
            moe_batch_layout(&b, s.tokens, 0, s.devices, rank, ranks);
            random_routing(&b, s, seed, &routing);
            moe_plan_build(&plan, mode, &b, &placement, ranks, &routing);
            const char *wrong = moe_plan_check(&plan, &placement, &routing);
            CHECK_MSG(wrong == NULL, "seed %llu, rank %d of %d: %s", (unsigned long long)seed, rank,
                      ranks, wrong ? wrong : "");
            naive_matrix(&b, &placement, &routing, mode, whole);
            for (int64_t i = 0; i < plan.device_cell[plan.num_local]; i++) {
                const moe_plan_cell *cell = &plan.cell[i];
                CHECK(cell->rows > 0 && cell->pairs >= cell->rows);
                CHECK(plan.row_device[cell->first_row] == cell->to);
                parts[(int64_t)cell->from * s.devices + cell->to] += cell->rows;
            }
            moe_batch_free(&b);
        }
        CHECK_MSG(memcmp(whole, parts, (size_t)cells * sizeof *whole) == 0,
                  "seed %llu: matrix at %d ranks", (unsigned long long)seed, ranks);
        memset(whole, 0, sizeof whole);
        moe_plan_free(&plan);
        moe_routing_free(&routing);
    }
    moe_placement_free(&placement);
}

/* The check must be able to fail: damage a good plan in every way it looks for. */
static void check_the_check(enum moe_exchange_mode mode) {
    shape s = {20, 4, 16, 4, false};
    moe_placement placement;
    moe_batch b;
    moe_routing routing = {0};
    moe_plan plan = {0};
    moe_placement_block(&placement, s.experts, s.devices);
    placement.devices_per_node = 2;
    moe_batch_layout(&b, s.tokens, 0, s.devices, 0, 1);
    random_routing(&b, s, 1, &routing);
    moe_plan_build(&plan, mode, &b, &placement, 1, &routing);
    CHECK(moe_plan_check(&plan, &placement, &routing) == NULL);
#define DAMAGE(what, by)                                                                 \
    do {                                                                                 \
        what by;                                                                         \
        CHECK_MSG(moe_plan_check(&plan, &placement, &routing) != NULL, "%s", #what #by); \
        moe_plan_build(&plan, mode, &b, &placement, 1, &routing);                        \
    } while (0)
    DAMAGE(plan.row_token[3], += 1);
    DAMAGE(plan.row_device[3], ^= 2);
    DAMAGE(plan.pair_expert[0], ^= 1);
    DAMAGE(plan.pair_selection[0], = plan.pair_selection[1]);
    DAMAGE(plan.token_row[0], = plan.token_row[plan.num_rows - 1]);
    DAMAGE(plan.num_pairs, -= 1);
    if (mode == MOE_EXCHANGE_TWO_LEVEL) {
        DAMAGE(plan.part_device[0], ^= 2);
        DAMAGE(plan.row_part[1], = 0);
    }
    moe_plan_free(&plan);
    moe_routing_free(&routing);
    moe_batch_free(&b);
    moe_placement_free(&placement);
}

static void check_format(enum moe_exchange_mode mode) {
    const moe_row_format *format = moe_row_format_of(mode, 0);
    CHECK_MSG(strcmp(format->name, moe_config_enum_name(MOE_KEY(exchange, mode), (int)mode)) == 0,
              "%s", format->name);
    CHECK(format->begins_row(2, 1));
    CHECK(format->begins_row(2, 2) == !format->several_pairs);
}

int main(void) {
    RUN(check_format, MOE_EXCHANGE_SELECTION);
    RUN(check_format, MOE_EXCHANGE_TOKEN);
    RUN(check_format, MOE_EXCHANGE_TWO_LEVEL);
    const shape shapes[] = {{37, 8, 64, 6, false}, {5, 4, 16, 4, true},  {0, 2, 8, 2, false},
                            {3, 8, 16, 2, true},   {64, 1, 8, 2, false}, {100, 12, 120, 40, true}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (uint64_t seed = 0; seed < 6; seed++) {
            RUN(check_shape, shapes[i], MOE_EXCHANGE_TOKEN, seed);
            RUN(check_shape, shapes[i], MOE_EXCHANGE_SELECTION, seed);
            RUN(check_shape, shapes[i], MOE_EXCHANGE_TWO_LEVEL, seed);
        }
    }
    RUN(check_the_check, MOE_EXCHANGE_TOKEN);
    RUN(check_the_check, MOE_EXCHANGE_TWO_LEVEL);
    return check_verdict();
}
