/* task.c: whether the text is long enough, and the choice between the two tasks. */
#include "train/task.h"

#include "train/task_internal.h"

/* --- is there enough text? --- */

static int64_t sequence_length(const moe_config *c) {
    int64_t total = c->cluster.devices * c->data.tokens_per_device,
            length = c->data.sequence_length;
    return length > 0 && length < total ? length : total;
}

static moe_corpus corpus_of(const moe_input *input) {
    return (moe_corpus){input->text, input->text_length, input->num_domains, input->domain_offset};
}

static int check_part(const moe_config *c,
                      const moe_corpus *text,
                      int32_t device,
                      int32_t domain,
                      enum moe_split split,
                      moe_status *st) {
    int64_t needed = sequence_length(c) + 1, length;
    moe_data_text_part(c, text, c->cluster.devices, device, domain, split, &length);
    if (length >= needed) {
        return MOE_OK;
    }
    return moe_fail(st, MOE_USER,
                    "data.path: text %d of %d has %lld bytes, of which device %d of %d has %lld "
                    "for %s (train.validation_share = %g); a sequence and "
                    "the byte after it need %lld: a longer text, fewer devices or a shorter "
                    "data.sequence_length is needed",
                    domain + 1, text->num_domains,
                    (long long)(text->domain_offset[domain + 1] - text->domain_offset[domain]),
                    device, c->cluster.devices, (long long)length,
                    split == MOE_SPLIT_TRAIN ? "training" : "validation", c->train.validation_share,
                    (long long)needed);
}

int moe_task_check(const moe_config *c, const moe_input *input, moe_status *st) {
    moe_corpus text = corpus_of(input);
    if (c->data.source != MOE_SOURCE_TEXT) {
        return MOE_OK;
    }
    for (int32_t domain = 0; domain < text.num_domains; domain++) {
        for (int32_t d = 0; d < c->cluster.devices; d++) {
            if (check_part(c, &text, d, domain, MOE_SPLIT_TRAIN, st)) {
                return st->code;
            }
            if ((c->train.validation_every > 0 || c->train.specialization) &&
                check_part(c, &text, d, domain, MOE_SPLIT_VALIDATION, st)) {
                return st->code;
            }
        }
    }
    return MOE_OK;
}

/* --- the table --- */

static const moe_task_kind *kind_of(const moe_config *c) {
    return c->data.source == MOE_SOURCE_TEXT ? &moe_task_text : &moe_task_regression;
}

bool moe_task_is_text(const moe_task *task) {
    return task->kind == &moe_task_text;
}

void moe_task_init(moe_task *task,
                   const moe_config *c,
                   const moe_input *input,
                   const moe_batch *b,
                   moe_parameters *all) {
    *task = (moe_task){.kind = kind_of(c),
                       .config = c,
                       .corpus = corpus_of(input),
                       .hidden = c->model.hidden_size,
                       .num_tokens = b->num_tokens,
                       .context = c->train.context,
                       .table_index = -1,
                       .head_norm_index = -1,
                       .head_index = -1};
    task->kind->init(task, all);
}

void moe_task_input(moe_task *task, moe_batch *b, int64_t draw, enum moe_split split, real *x0) {
    MOE_ASSERT(b->num_tokens == task->num_tokens);
    task->kind->input(task, b, draw, split, x0);
}

int64_t moe_task_loss(moe_task *task,
                      const moe_batch *b,
                      const real *h,
                      int64_t tokens_global,
                      moe_parameters *all,
                      int64_t *sum,
                      int64_t *tokens,
                      real *dh) {
    for (int64_t t = 0; t < b->num_tokens; t++) {
        *tokens += !b->counted || b->counted[t];
    }
    return task->kind->loss(task, b, h, tokens_global, all, sum, dh);
}

void moe_task_input_backward(moe_task *task,
                             const moe_batch *b,
                             const real *dx0,
                             moe_parameters *all) {
    if (task->kind->input_backward) {
        task->kind->input_backward(task, b, dx0, all);
    }
}

void moe_task_free(moe_task *task) {
    moe_block_free(&task->block);
    *task = (moe_task){0};
}
