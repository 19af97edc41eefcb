/* row_format.c: the table of the modes of the exchange. */
#include "exchange/row_format.h"

#include <stddef.h>

#include "base/status.h"

static bool every_pair(int32_t device, int32_t previous) {
    (void)device, (void)previous;
    return true;
}

static bool every_device(int32_t device, int32_t previous) {
    return device != previous;
}

static const moe_row_format formats[] = {
    [MOE_EXCHANGE_SELECTION] = {"selection", every_pair, .several_pairs = false, .head_words = 1},
    [MOE_EXCHANGE_TOKEN] = {"token", every_device, .several_pairs = true, .head_words = 2},
};

const moe_row_format *moe_row_format_of(enum moe_exchange_mode mode) {
    MOE_ASSERT((size_t)mode < sizeof formats / sizeof formats[0]);
    return &formats[mode];
}
