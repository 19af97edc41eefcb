/* check_exchange.c: what an exchange in chunks needs of the other keys. */
#include "config/check.h"
#include "config/refuse.h"

int moe_check_chunk_tokens(const moe_config *c, int64_t num_tokens, moe_status *st) {
    const bool generates = moe_config_generates(c);
    const int64_t least =
        generates ? c->generate.sequences_per_device : num_tokens / c->cluster.devices;
    if (c->exchange.chunks == 1 || c->exchange.chunks <= least) {
        return MOE_OK;
    }
    return moe_refuse_key(c, MOE_KEY(exchange, chunks), st,
                          "there is nothing to put into some of the chunks: %s %lld, and chunks "
                          "may be at most that",
                          generates ? "a device decodes a token of each of its sequences, "
                                      "generate.sequences_per_device ="
                                    : "the tokens of a device are",
                          (long long)least);
}

int moe_check_exchange(const moe_config *c, moe_status *st) {
    const enum moe_key_id chunks = MOE_KEY(exchange, chunks);
    const bool known = moe_config_generates(c) || (!moe_config_recorded(c) && !c->model.load[0]);
    if (c->exchange.chunks == 1) {
        return MOE_OK;
    }
    if (c->exchange.mode == MOE_EXCHANGE_TWO_LEVEL) {
        return moe_refuse_pair(c, chunks, MOE_KEY(exchange, mode),
                               "its second hop begins when the whole first one has arrived: mode "
                               "= token or selection, or chunks = 1",
                               st);
    }
    if (c->exchange.transport == MOE_TRANSPORT_SHARED) {
        return moe_refuse_pair(c, chunks, MOE_KEY(exchange, transport),
                               "a rank writes to shared memory itself and has nothing to compute "
                               "behind: transport = alltoallv or auto, or chunks = 1",
                               st);
    }
    return known ? moe_check_chunk_tokens(c, c->data.tokens_per_device * c->cluster.devices, st)
                 : MOE_OK;
}
