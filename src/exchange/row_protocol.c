/* row_protocol.c: the table of row protocols: DeepEP's messages, as its sources and tests count
 * them. */
#include "exchange/row_protocol.h"

#include <stddef.h>

#include "base/status.h"
#include "exchange/payload.h"

static int64_t fp8(int64_t hidden) {
    return moe_payload_bytes((moe_payload_format){MOE_PAYLOAD_FP8, MOE_FP8_SCALE_FP32}, hidden);
}

static int64_t bf16(int64_t hidden) {
    return moe_payload_bytes((moe_payload_format){.type = MOE_PAYLOAD_BF16}, hidden);
}

static int64_t align16(int64_t bytes) {
    return (bytes + 15) / 16 * 16;
}

/* --- bare: nothing but the vector --- */

static int64_t bare_out(int64_t hidden, int64_t top_k) {
    (void)top_k;
    return fp8(hidden);
}
static int64_t bare_back(int64_t hidden, int64_t top_k) {
    (void)top_k;
    return bf16(hidden);
}

/* --- V1, low latency: one int4 with the token's index in front --- */

static int64_t low_latency_out(int64_t hidden, int64_t top_k) {
    (void)top_k;
    return 16 + fp8(hidden);
}

/* --- V1, normal: 8 bytes of source, then 4 for each index and each weight, up to 16 --- */

static int64_t normal_out(int64_t hidden, int64_t top_k) {
    return align16(fp8(hidden) + 8 + 4 * top_k + 4 * top_k);
}
static int64_t normal_back(int64_t hidden, int64_t top_k) {
    return align16(bf16(hidden) + 8 + 4 * top_k);
}

/* --- V2, as its test counts: 8 bytes for each index, 4 for each weight --- */

static int64_t v2_out(int64_t hidden, int64_t top_k) {
    return fp8(hidden) + 8 * top_k + 4 * top_k;
}
static int64_t v2_back(int64_t hidden, int64_t top_k) {
    return bf16(hidden) + 4 * top_k;
}

static const moe_row_protocol protocols[] = {
    [MOE_ROW_BARE] = {"bare", "the vector alone", bare_out, bare_back},
    [MOE_ROW_DEEPEP_LOW_LATENCY] = {"deepep_low_latency", "DeepEP V1's low-latency message",
                                    low_latency_out, bare_back},
    [MOE_ROW_DEEPEP_NORMAL] = {"deepep_normal", "DeepEP V1's normal message", normal_out,
                               normal_back},
    [MOE_ROW_DEEPEP_V2] = {"deepep_v2", "DeepEP V2's row, as its test counts", v2_out, v2_back},
};

const moe_row_protocol *moe_row_protocol_of(enum moe_row_protocol_name protocol) {
    MOE_ASSERT((size_t)protocol < sizeof protocols / sizeof protocols[0]);
    return &protocols[protocol];
}
