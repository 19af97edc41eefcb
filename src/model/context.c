/* context.c: what the layers share, from the configuration. */
#include "model/context.h"

#include "base/alloc.h"
#include "model/serving.h"
#include "world/board.h"

static void init_placements(moe_context *context) {
    const moe_config *c = context->config;
    const int32_t slots = moe_config_slots_per_device(c);
    context->placements =
        moe_alloc(moe_config_moe_layers(c), sizeof *context->placements, "placements");
    for (int32_t l = 0; l < moe_config_moe_layers(c); l++) {
        moe_placement *p = &context->placements[l];
        moe_placement_init(p, c->model.num_experts, c->cluster.devices, slots,
                           c->cluster.devices_per_node);
        if (moe_config_in_blocks(c)) {
            continue;
        }
        if (c->placement.policy == MOE_PLACEMENT_ROUND_ROBIN) {
            moe_placement_deal_out(p);
        } else if (c->placement.policy == MOE_PLACEMENT_FILE) {
            moe_placement_fill(p, context->input->expert_at + (int64_t)l * moe_placement_slots(p));
        }
    }
}

void moe_context_free(moe_context *context) {
    if (context->board) {
        moe_board_close(context->board);
        context->board = NULL;
    }
    for (int32_t l = 0; context->placements && l < moe_config_moe_layers(context->config); l++) {
        moe_placement_free(&context->placements[l]);
    }
    moe_free(context->placements);
    context->placements = NULL;
    moe_serving_free(context->serving);
    context->serving = NULL;
}

void moe_context_init(moe_context *context,
                      const moe_comm *comm,
                      const moe_config *c,
                      moe_batch *batch,
                      const moe_input *input,
                      moe_scratch *scratch) {
    *context = (moe_context){.comm = comm, .config = c, .batch = batch, .input = input};
    context->bf16 = c->model.compute == MOE_COMPUTE_BF16;
    /* a rank alone on its host has one, too, where others share theirs: all exchange alike */
    context->host = moe_config_shares_memory(c) && comm->num_hosts < comm->size ? comm->host : NULL;
    if (context->host && comm->num_hosts == 1 && moe_board_open(comm->host)) {
        context->board = comm->host;
    }
    context->dispatched = moe_payload_of_dispatch(c);
    context->combined = moe_payload_of_combine(c);
    init_placements(context);
    context->serving = moe_serving_make(context);
    moe_router_init(&context->router, &c->router, &c->balance, c->model.num_experts,
                    c->cluster.devices, input->bias);
    batch->scratch = context->router.scratch = scratch;
    moe_balance_init(&context->balance, &c->balance, moe_config_moe_layers(c), c->comm_limit);
    context->balance.has_logits = !moe_config_recorded(c);
    context->balance.has_scores = !moe_config_recorded(c) || c->data.scores[0];
    moe_capacity_init(&context->capacity, c);
}

const char *moe_context_rows_not_tokens(const moe_context *context) {
    const moe_config *c = context->config;
    if (c->exchange.mode != MOE_EXCHANGE_TOKEN) {
        return c->exchange.mode == MOE_EXCHANGE_SELECTION
                   ? "exchange.mode is not token: rows are selections, not tokens"
                   : "exchange.mode is not token: rows go to nodes first";
    }
    if (c->balance.comm_count != MOE_COUNT_TOKENS) {
        return "balance.comm_count = selections counts selections, not tokens";
    }
    if (!c->balance.comm_count_local) {
        return "balance.comm_count_local = no leaves out rows that stay on their device";
    }
    if (c->balance.aux_selection != MOE_AUX_ACTUAL) {
        return "balance.aux_selection = unlimited counts a selection that is not sent";
    }
    if (c->data.mask[0] && c->data.padding == MOE_PADDING_COUNTED) {
        return "padding tokens are sent but not counted";
    }
    return NULL;
}
