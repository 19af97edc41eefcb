/* unit_announce.c: the size of the block in which sizes and metadata travel together, by hand.
 * Three counts of 8 bytes stand in front; then 4 bytes for each word: of a row its token and, in
 * mode `token`, how many pairs it has; of a pair its expert and its weight. */
#include "check.h"
#include "exchange/exchange.h"

enum { COUNTS = 24, WORD = 4, WEIGHT = (int)sizeof(real) };

static int64_t bytes(enum moe_exchange_mode mode, int32_t d, int32_t ranks, int64_t t, int64_t k) {
    return moe_exchange_block_bytes(mode, d, ranks, t, t * k);
}

static void check_fitting(void) {
    /* 64 tokens a rank, each with one row of 2 pairs for the other rank's only device */
    CHECK_EQ(bytes(MOE_EXCHANGE_TOKEN, 2, 2, 128, 2),
             COUNTS + 64 * (2 * WORD + 2 * (WORD + WEIGHT)));
    /* or with two rows of one pair each */
    CHECK_EQ(bytes(MOE_EXCHANGE_SELECTION, 2, 2, 128, 2),
             COUNTS + 64 * (2 * WORD + 2 * (WORD + WEIGHT)));
    /* two devices a rank and three experts: rows to both devices */
    CHECK_EQ(bytes(MOE_EXCHANGE_TOKEN, 4, 2, 40, 3),
             COUNTS + 20 * (2 * 2 * WORD + 3 * (WORD + WEIGHT)));
    /* more devices than experts: as many rows as experts */
    CHECK_EQ(bytes(MOE_EXCHANGE_TOKEN, 16, 2, 16, 3),
             COUNTS + 8 * (3 * 2 * WORD + 3 * (WORD + WEIGHT)));
    /* tokens that do not divide: the fullest rank counts */
    CHECK_EQ(bytes(MOE_EXCHANGE_SELECTION, 4, 4, 9, 1), COUNTS + 3 * (WORD + WORD + WEIGHT));
}

static void check_not_fitting(void) {
    CHECK_EQ(bytes(MOE_EXCHANGE_TWO_LEVEL, 2, 2, 128, 2), 0);
    CHECK_EQ(bytes(MOE_EXCHANGE_TOKEN, 2, 2, 0, 2), 0);
    CHECK_EQ(bytes(MOE_EXCHANGE_TOKEN, 2, 2, 1 << 20, 2), 0);
    CHECK_EQ(moe_exchange_block_bytes(MOE_EXCHANGE_TOKEN, 2, 2, 2, INT64_C(3) << 60), 0);
    CHECK_EQ(moe_exchange_block_bytes(MOE_EXCHANGE_SELECTION, 8, 2, INT64_MAX, INT64_MAX), 0);
    CHECK_EQ(bytes(MOE_EXCHANGE_TOKEN, 1024, 1024, 1024, 1), 0); /* small, but for many ranks */
}

/* All blocks of a rank together: 16 KiB are allowed, and not one token more. */
static void check_limit(void) {
    const int64_t of_token = WORD + WORD + WEIGHT, most = ((1 << 13) - COUNTS) / of_token;
    CHECK_EQ(bytes(MOE_EXCHANGE_SELECTION, 2, 2, 2 * most, 1), COUNTS + most * of_token);
    CHECK_EQ(bytes(MOE_EXCHANGE_SELECTION, 2, 2, 2 * most + 1, 1), 0);
}

int main(void) {
    check_fitting();
    check_not_fitting();
    check_limit();
    return check_verdict();
}
