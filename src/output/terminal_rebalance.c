/* terminal_rebalance.c: what the placements by load of a run moved. */
#include "output/format.h"
#include "output/terminal.h"
#include "output/terminal_internal.h"

void moe_terminal_rebalance(const moe_screen *s,
                            const moe_config *c,
                            const moe_step_metrics *last) {
    const moe_rebalance_metrics *r = &last->rebalance_sum;
    if (!r->on) {
        return;
    }
    const bool state = c->run.mode == MOE_MODE_TRAIN && c->train.optimizer == MOE_OPTIMIZER_ADAMW;
    moe_screen_heading(s, "Placement");
    moe_screen_wrapped(
        s, 2, "",
        "%lld\tplacement%s by load: %lld\texperts moved between devices, %s (%s across nodes), "
        "weights%s; decided in %s, moved in %s. By the load that the last one was decided by, the "
        "busiest device had %.3f and has %.3f of the mean. %lld\treplica%s on a "
        "device that has the expert already, wasted.",
        (long long)r->decisions, r->decisions == 1 ? "" : "s", (long long)r->moved,
        moe_format_glued(moe_format_bytes(r->bytes)).s,
        moe_format_glued(moe_format_bytes(r->cross_node_bytes)).s,
        state ? " and optimiser state" : "",
        moe_format_glued(moe_format_seconds(r->decide_seconds)).s,
        moe_format_glued(moe_format_seconds(r->move_seconds)).s, r->device_before, r->device_after,
        (long long)r->wasted, r->wasted == 1 ? "" : "s");
}
