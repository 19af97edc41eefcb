/* terminal_warnings.c: what a run may compute though its figures may not be what was meant. */
#include <stdio.h>

#include "output/terminal.h"
#include "output/terminal_internal.h"

enum { LABEL = 11 };

void moe_terminal_warn(const moe_screen *s, const char *text) {
    fputs(moe_screen_paint(s, MOE_YELLOW), s->out);
    moe_screen_wrapped(s, LABEL, "warning", "%s", text);
    fputs(moe_screen_paint(s, MOE_PLAIN), s->out);
}

/* Recorded numbers of another kind than the configuration takes them for. */
static void warn_recorded(const moe_screen *s, const moe_config *c, const moe_input *input) {
    char text[400];
    const char *score =
        moe_config_enum_name(MOE_KEY(router, score_func), (int)c->router.score_func);
    if (input->odd_scores > 0) {
        snprintf(text, sizeof text,
                 "%lld row%s of data.scores %s not sum to 1 (the first sums to %.4g), as scores of "
                 "router.score_func = %s do: losses and entropy are not those of shares. For "
                 "recorded sigmoid scores set router.score_func = sigmoid",
                 (long long)input->odd_scores, input->odd_scores == 1 ? "" : "s",
                 input->odd_scores == 1 ? "does" : "do", input->odd_scores_sum, score);
        moe_terminal_warn(s, text);
    }
    if (input->logits_look_like_shares) {
        snprintf(text, sizeof text,
                 "every row of data.path lies between 0 and 1 and sums to 1: these look like "
                 "probabilities, and the router takes them for logits, of which router.score_func "
                 "= %s makes nearly equal scores. Record what stands before the softmax, or the "
                 "logarithms",
                 score);
        moe_terminal_warn(s, text);
    }
}

static bool trains_balance(const moe_balance_config *b) {
    return b->alpha_expert > 0 || b->alpha_device > 0 || b->alpha_comm > 0 ||
           b->importance_loss > 0 || b->load_loss > 0;
}

static void warn_training(const moe_screen *s, const moe_config *c) {
    char text[400];
    const bool normalized =
        (c->router.norm_topk_prob && c->router.norm_single) || moe_config_weights_over_chosen(c);
    if (normalized && c->router.top_k == 1 && c->router.method != MOE_METHOD_EXPERT_CHOICE) {
        snprintf(text, sizeof text,
                 "the weight of a single expert is always %g after normalisation (router.top_k = "
                 "1): the task gives the router no gradient%s",
                 c->router.scale_normalized ? c->router.routed_scaling_factor : 1.0,
                 trains_balance(&c->balance) || c->balance.z_loss > 0
                     ? ", only the balance losses do"
                     : ", and no balance loss does either");
        moe_terminal_warn(s, text);
    }
    if (c->balance.scope == MOE_SCOPE_GLOBAL && c->balance.global_batch != MOE_GLOBAL_STEP &&
        c->train.accumulate > 1 && trains_balance(&c->balance)) {
        snprintf(
            text, sizeof text,
            "balance.scope = global is the tokens of one micro-batch, not those of all %d "
            "micro-batches of a step (train.accumulate); balance.global_batch = step takes those",
            c->train.accumulate);
        moe_terminal_warn(s, text);
    }
}

void moe_terminal_warnings(const moe_screen *s, const moe_config *c, const moe_input *input) {
    if (s->quiet) {
        return;
    }
    warn_recorded(s, c, input);
    if (c->run.mode == MOE_MODE_TRAIN) {
        warn_training(s, c);
    }
    fflush(s->out);
}
