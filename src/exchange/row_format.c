/* row_format.c: the table of the modes of the exchange. */
#include "exchange/row_format.h"

#include <stddef.h>

#include "base/status.h"
#include "exchange/payload.h"

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

/* --- bytes on the wire --- */

/* What a protocol adds to a row: header + per_choice * K, rounded up. */
typedef struct around {
    int64_t header, per_choice, align;
} around;

static const struct {
    around out, back;
} protocols[] = {
    [MOE_ROW_BARE] = {{0, 0, 1}, {0, 0, 1}},
    [MOE_ROW_DEEPEP_LOW_LATENCY] = {{16, 0, 1}, {0, 0, 1}},
    [MOE_ROW_DEEPEP_NORMAL] = {{8, 8, 16}, {8, 4, 16}},
    [MOE_ROW_DEEPEP_V2] = {{0, 12, 1}, {0, 4, 1}},
};

int64_t moe_row_format_wire_bytes(enum moe_row_protocol protocol,
                                  enum moe_payload payload,
                                  int64_t hidden,
                                  int64_t top_k,
                                  bool back) {
    const around *a = back ? &protocols[protocol].back : &protocols[protocol].out;
    const int64_t bytes = moe_payload_bytes((moe_payload_format){.type = payload}, hidden) +
                          a->header + a->per_choice * top_k;
    return (bytes + a->align - 1) / a->align * a->align;
}
