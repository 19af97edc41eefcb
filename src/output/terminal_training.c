/* terminal_training.c: the lines on training in the header of a run: what is learned, and how. */
#include <math.h>

#include "output/format.h"
#include "output/terminal.h"
#include "output/terminal_internal.h"

enum { LABEL = 11 };

static void print_task(const moe_screen *s, const moe_config *c, const moe_training_facts *f) {
    char entropy[64] = "";
    if (f->unigram_entropy > 0) {
        snprintf(entropy, sizeof entropy, "; unigram entropy %.3f nats (%.3f bits)",
                 f->unigram_entropy, f->unigram_entropy / M_LN2);
    }
    if (moe_terminal_is_text(c)) {
        moe_screen_wrapped(
            s, LABEL, "task",
            "next byte of a text: %s bytes in %d domain%s, context %d, %g\t%% held out%s",
            moe_format_count(f->text_bytes).s, f->domains, f->domains == 1 ? "" : "s",
            c->train.context, 100 * c->train.validation_share, entropy);
    } else {
        moe_screen_wrapped(s, LABEL, "task",
                           "regression: each of %d synthetic topics has its own linear target; "
                           "loss = mean squared error",
                           c->data.num_topics);
    }
}

static void print_optimizer(const moe_screen *s, const moe_config *c) {
    char clip[48] = "", accumulate[64] = "";
    if (c->train.clip_norm > 0) {
        snprintf(clip, sizeof clip, ", gradient norm clipped at %g", c->train.clip_norm);
    }
    if (c->train.accumulate > 1) {
        snprintf(accumulate, sizeof accumulate, ", %d micro-batches a step", c->train.accumulate);
    }
    moe_screen_wrapped(
        s, LABEL, "training",
        "%s step%s of %s, learning rate %g, warm-up %s step%s, then %s, weight decay %g%s%s",
        moe_format_count(c->run.steps).s, c->run.steps == 1 ? "" : "s",
        moe_config_enum_name(MOE_KEY(train, optimizer), c->train.optimizer), c->train.learning_rate,
        moe_format_count(c->train.warmup_steps).s, c->train.warmup_steps == 1 ? "" : "s",
        moe_config_enum_name(MOE_KEY(train, schedule), c->train.schedule), c->train.weight_decay,
        clip, accumulate);
}

static void print_memory(const moe_screen *s, const moe_config *c, const moe_memory *m) {
    moe_memory_part part[MOE_MEMORY_PARTS];
    char text[512] = "";
    size_t length = 0;
    moe_memory_parts(m, part);
    for (int i = 0; i < MOE_MEMORY_PARTS; i++) {
        if (part[i].bytes > 0) {
            length += (size_t)snprintf(text + length, sizeof text - length, "%s%s %s",
                                       length > 0 ? ", " : "", part[i].name,
                                       moe_format_glued(moe_format_bytes(part[i].bytes)).s);
        }
    }
    moe_screen_wrapped(s, LABEL, "", "fullest rank: %s%s", text,
                       c->train.recompute ? "; the experts' hidden vectors are computed again"
                                          : "");
}

void moe_terminal_training(const moe_screen *s,
                           const moe_config *c,
                           const moe_training_facts *facts,
                           const moe_memory *memory) {
    if (s->quiet) {
        return;
    }
    print_task(s, c, facts);
    print_optimizer(s, c);
    moe_screen_wrapped(s, LABEL, "parameters",
                       "%s: %s of the experts (each on one device), %s replicated on every device",
                       moe_format_count(facts->expert_parameters + facts->replicated_parameters).s,
                       moe_format_count(facts->expert_parameters).s,
                       moe_format_count(facts->replicated_parameters).s);
    print_memory(s, c, memory);
    fflush(s->out);
}
