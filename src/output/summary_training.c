/* summary_training.c: what training adds to a step's line and to the summary. A loss in nats of a
 * text stands there in bits per byte too. */
#include <math.h>

#include "output/summary_internal.h"

static bool is_text(const moe_config *c) {
    return c->data.source == MOE_SOURCE_TEXT;
}

static double bits(double nats) {
    return nats / M_LN2;
}

/* --- one step --- */

void moe_summary_put_training(json_t *line, const moe_config *c, const moe_step_metrics *step) {
    moe_json_put(line, "task_loss", moe_json_number(step->task_loss));
    if (is_text(c)) {
        moe_json_put(line, "lm_loss", moe_json_number(step->task_loss));
        moe_json_put(line, "bits_per_byte", moe_json_number(bits(step->task_loss)));
    }
    if (!isnan(step->validation_loss)) {
        moe_json_put(line, "validation_loss", moe_json_number(step->validation_loss));
    }
    if (!isnan(step->validation_loss) && is_text(c)) {
        moe_json_put(line, "validation_bits_per_byte",
                     moe_json_number(bits(step->validation_loss)));
    }
    moe_json_put(line, "gradient_norm", moe_json_number(step->gradient_norm));
    moe_json_put(line, "learning_rate", moe_json_number(step->learning_rate));
    moe_json_put(line, "gradient_allreduce_bytes", json_integer(step->gradient_allreduce_bytes));
    moe_json_put(line, "replica_gradient_bytes", json_integer(step->replica_gradient_bytes));
}

/* --- the run --- */

static json_t *course(const moe_training_history *h, int figure, double unit) {
    json_t *o = json_object();
    moe_json_put(o, "first", moe_json_number(moe_training_history_first(h, figure) / unit));
    moe_json_put(o, "last", moe_json_number(moe_training_history_last(h, figure) / unit));
    moe_json_put(o, "mean_last_20", moe_json_number(moe_training_history_mean(h, figure) / unit));
    return o;
}

static json_t *raw_losses(const moe_training_history *h) {
    json_t *o = json_object();
    for (int i = 0; i < MOE_NUM_LOSSES; i++) {
        moe_json_put(o, moe_loss_names[i], course(h, MOE_FIGURE_RAW + i, 1));
    }
    return o;
}

static json_t *maxvio(const moe_training_history *h) {
    json_t *o = json_object();
    moe_json_put(o, "expert", course(h, MOE_FIGURE_EXPERT_MAXVIO, 1));
    moe_json_put(o, "device", course(h, MOE_FIGURE_DEVICE_MAXVIO, 1));
    moe_json_put(o, "received", course(h, MOE_FIGURE_RECEIVED_MAXVIO, 1));
    return o;
}

/* It is null without a validation. */
static json_t *validations(const moe_validations *v, double unit) {
    if (v->count == 0) {
        return json_null();
    }
    json_t *o = json_object();
    moe_json_put(o, "count", json_integer((json_int_t)v->count));
    moe_json_put(o, "first", moe_json_number(v->first / unit));
    moe_json_put(o, "first_step", json_integer((json_int_t)v->first_step));
    moe_json_put(o, "best", moe_json_number(v->best / unit));
    moe_json_put(o, "best_step", json_integer((json_int_t)v->best_step));
    moe_json_put(o, "last", moe_json_number(v->last / unit));
    moe_json_put(o, "last_step", json_integer((json_int_t)v->last_step));
    return o;
}

static json_t *parameters(const moe_training_facts *f) {
    json_t *o = json_object();
    moe_json_put(o, "total", json_integer(f->expert_parameters + f->replicated_parameters));
    moe_json_put(o, "expert", json_integer(f->expert_parameters));
    moe_json_put(o, "replicated", json_integer(f->replicated_parameters));
    return o;
}

static void put_text(json_t *o, const moe_training_history *h, const moe_training_facts *f) {
    double entropy = f->unigram_entropy > 0 ? f->unigram_entropy : NAN;
    moe_json_put(o, "lm_loss", course(h, MOE_FIGURE_TASK_LOSS, 1));
    moe_json_put(o, "bits_per_byte", course(h, MOE_FIGURE_TASK_LOSS, M_LN2));
    moe_json_put(o, "validation_bits_per_byte", validations(&h->validation, M_LN2));
    moe_json_put(o, "text_bytes", json_integer(f->text_bytes));
    moe_json_put(o, "domains", json_integer(f->domains));
    moe_json_put(o, "unigram_entropy", moe_json_number(entropy));
    moe_json_put(o, "unigram_bits_per_byte", moe_json_number(bits(entropy)));
    moe_json_put(o, "above_unigram_entropy",
                 isnan(entropy) ? json_null()
                                : json_boolean(moe_training_history_above_unigram(h, f)));
}

json_t *moe_summary_training(const moe_config *c,
                             const moe_step_metrics *last,
                             const moe_training_history *h,
                             const moe_training_facts *f) {
    json_t *o = json_object();
    moe_json_put(o, "task", json_string(is_text(c) ? "text" : "synthetic"));
    moe_json_put(o, "steps", json_integer((json_int_t)h->steps));
    moe_json_put(o, "window", json_integer(moe_training_history_window(h)));
    moe_json_put(o, "diverged", json_boolean(moe_training_history_diverged(h, f)));
    moe_json_put(o, "rose", json_boolean(moe_training_history_rose(h)));
    moe_json_put(o, "task_loss", course(h, MOE_FIGURE_TASK_LOSS, 1));
    moe_json_put(o, "validation_loss", validations(&h->validation, 1));
    if (is_text(c)) {
        put_text(o, h, f);
    }
    moe_json_put(o, "balance_loss", course(h, MOE_FIGURE_BALANCE_LOSS, 1));
    moe_json_put(o, "loss_raw", raw_losses(h));
    moe_json_put(o, "maxvio", maxvio(h));
    moe_json_put(o, "dispatch_remote_bytes", course(h, MOE_FIGURE_DISPATCH_BYTES, 1));
    moe_json_put(o, "remote_bytes", course(h, MOE_FIGURE_SENT_BYTES, 1));
    moe_json_put(o, "gradient_allreduce_bytes", json_integer(last->gradient_allreduce_bytes));
    moe_json_put(o, "replica_gradient_bytes", json_integer(last->replica_gradient_bytes));
    moe_json_put(o, "gradient_norm", course(h, MOE_FIGURE_GRADIENT_NORM, 1));
    moe_json_put(o, "learning_rate", course(h, MOE_FIGURE_LEARNING_RATE, 1));
    moe_json_put(o, "parameters", parameters(f));
    return o;
}
