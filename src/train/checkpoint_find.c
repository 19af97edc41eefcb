/* checkpoint_find.c: a file is trusted when every byte of it has been read and its checksums are
 * right; the reading is spread over ranks. */
#include "train/checkpoint_find.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "config/hint.h"
#include "config/table.h"
#include "config/value.h"
#include "train/checkpoint_file.h"

/* --- the newest that is whole --- */

/* Reads this rank's share of the blocks of one section. */
static void verify_section(const moe_comm *comm,
                           int file,
                           const char *path,
                           const moe_checkpoint_table *t,
                           const moe_section *s,
                           moe_status *st) {
    char *data = moe_alloc(s->num_blocks > 0 ? s->block_bytes : 0, 1, "a block of a checkpoint");
    for (int64_t b = 0; b < s->num_blocks && st->code == MOE_OK; b++) {
        if ((s->first + b) % comm->size == comm->rank) {
            moe_checkpoint_file_read(file, path, t, s, b, data, st);
        }
    }
    moe_free(data);
}

/* Collective. Reads every block of a file and verifies its checksum. */
static int verify(const moe_comm *comm,
                  const char *path,
                  const moe_checkpoint_table *t,
                  moe_status *st) {
    int file = moe_checkpoint_file_open(path, st);
    for (int i = 0; i < t->num && st->code == MOE_OK; i++) {
        verify_section(comm, file, path, t, &t->section[i], st);
    }
    if (file >= 0) {
        close(file);
    }
    return moe_comm_agree(comm, st);
}

static void take(moe_checkpoint *found, const moe_checkpoint_table *t) {
    int64_t length = (int64_t)strlen(t->config_text) + 1;
    found->step = t->step;
    found->bytes = t->bytes;
    found->config_text = moe_alloc(length, 1, "configuration of a checkpoint");
    memcpy(found->config_text, t->config_text, (size_t)length);
    snprintf(found->name, sizeof found->name, "%s", t->name);
}

/* Collective. *found becomes the checkpoint after `step` steps, if it is whole. */
static int try_step(const moe_comm *comm,
                    const char *folder,
                    int64_t step,
                    moe_checkpoint *found,
                    moe_status *st) {
    moe_checkpoint_table t;
    moe_checkpoint_folder_file(folder, step, found->path);
    if (moe_checkpoint_file_load(comm, found->path, &t, st) == MOE_OK && t.step != step) {
        moe_fail(st, MOE_USER, "the checkpoint '%s' is damaged: it was made after %lld steps",
                 found->path, (long long)t.step);
    }
    if (st->code == MOE_OK && verify(comm, found->path, &t, st) == MOE_OK) {
        take(found, &t);
    }
    moe_checkpoint_table_free(&t);
    return st->code;
}

static void add_words(char word[512], const char *more) {
    size_t length = strlen(word);
    snprintf(word + length, 512 - length, "%s%s", length ? "; " : "", more);
}

/* Collective. The steps to try, newest first, the same on all ranks. */
static int64_t *list(const moe_comm *comm, const char *folder, int *num, moe_status *st) {
    int64_t *steps = NULL;
    *num = 0;
    if (comm->rank == 0) {
        steps = moe_checkpoint_folder_list(folder, num);
        if (access(folder, F_OK) != 0) {
            moe_fail(st, MOE_USER, "the folder '%s' cannot be opened: %s", folder, strerror(errno));
        } else if (!moe_checkpoint_folder_is_own(folder, st)) {
            *num = 0;
        } else if (*num == 0) {
            moe_fail(st, MOE_USER,
                     "the folder '%s' has no checkpoints: train.checkpoint_every says how often a "
                     "training run writes one, and train.save_final whether at its end",
                     folder);
        }
    }
    if (moe_comm_agree(comm, st) != MOE_OK) {
        return steps;
    }
    moe_comm_bcast(comm, num, sizeof *num, 0);
    if (comm->rank != 0) {
        steps = moe_alloc(*num, sizeof *steps, "list of checkpoints");
    }
    moe_comm_bcast(comm, steps, *num * (int64_t)sizeof *steps, 0);
    return steps;
}

int moe_checkpoint_find(const moe_comm *comm,
                        const char *folder,
                        moe_checkpoint *found,
                        char word[512],
                        moe_status *st) {
    int num;
    char choice[64];
    memset(found, 0, sizeof *found);
    word[0] = '\0';
    int64_t *steps = list(comm, folder, &num, st);
    for (int i = 0; i < num && st->code == MOE_OK && !found->config_text; i++) {
        moe_status bad = {0};
        if (try_step(comm, folder, steps[i], found, &bad) != MOE_OK) {
            add_words(word, bad.message);
        }
    }
    if (st->code == MOE_OK && !found->config_text) {
        moe_fail(st, MOE_USER, "the folder '%s' has no checkpoint that is whole: %s", folder, word);
    } else if (word[0]) {
        snprintf(choice, sizeof choice, "the one after %lld steps is used", (long long)found->step);
        add_words(word, choice);
    }
    moe_free(steps);
    return st->code;
}

void moe_checkpoint_free(moe_checkpoint *found) {
    moe_free(found->config_text);
    found->config_text = NULL;
}

/* --- the same run --- */

int moe_checkpoint_config(const moe_checkpoint *found, moe_config *c, moe_status *st) {
    moe_config_defaults(c);
    moe_config_parse(c, found->config_text, (int64_t)strlen(found->config_text), found->path, st);
    memcpy(c->name, found->name, sizeof c->name);
    return st->code;
}

/* Keys that leave the results alone. router.preset only stands in for keys that are compared one by
 * one. */
static const enum moe_key_id may_differ[] = {MOE_KEY(run, steps),
                                             MOE_KEY(run, threads),
                                             MOE_KEY(router, preset),
                                             MOE_KEY(exchange, mode),
                                             MOE_KEY(exchange, transport),
                                             MOE_KEY(exchange, algorithm),
                                             MOE_KEY(cluster, intra_gbps),
                                             MOE_KEY(cluster, intra_latency_us),
                                             MOE_KEY(cluster, inter_gbps),
                                             MOE_KEY(cluster, inter_latency_us),
                                             MOE_KEY(cluster, device_tflops),
                                             MOE_KEY(cluster, efficiency),
                                             MOE_KEY(train, checkpoint_every),
                                             MOE_KEY(train, save_final),
                                             MOE_KEY(train, validation_every),
                                             MOE_KEY(train, specialization),
                                             MOE_KEY(output, routing),
                                             MOE_KEY(output, tensors),
                                             MOE_KEY(output, timeline),
                                             MOE_KEY(output, every)};

/* Keys that a run that generates is free in beside those: what only training reads, how the
 * sequences are laid out, and where and how their rows travel. The seed draws the bytes; where it
 * also chooses experts it has to stay. */
static const enum moe_key_id may_differ_generating[] = {MOE_KEY(run, mode),
                                                        MOE_KEY(run, gemm),
                                                        MOE_KEY(capacity, policy),
                                                        MOE_KEY(data, path),
                                                        MOE_KEY(data, sequence_length),
                                                        MOE_KEY(data, tokens_per_device)};
static const enum moe_key_id sections_generating[] = {
    MOE_KEY(balance, scope), MOE_KEY(exchange, mode), MOE_KEY(cluster, devices),
    MOE_KEY(placement, policy), MOE_KEY(generate, run)};

static bool is_listed(const enum moe_key_id *list, size_t num, enum moe_key_id key) {
    for (size_t i = 0; i < num; i++) {
        if (list[i] == key) {
            return true;
        }
    }
    return false;
}

#define LISTED(list, key) is_listed(list, sizeof(list) / sizeof(list)[0], key)

static bool is_free(const moe_config *now, enum moe_key_id key) {
    if (LISTED(may_differ, key) || !moe_config_generates(now)) {
        return LISTED(may_differ, key);
    }
    for (size_t i = 0; i < sizeof sections_generating / sizeof sections_generating[0]; i++) {
        if (moe_table_same_section(sections_generating[i], key)) {
            return true;
        }
    }
    return LISTED(may_differ_generating, key) ||
           (key == MOE_KEY(run, seed) && !moe_config_ignores_scores(now));
}

static int compare_key(const moe_config *now,
                       const moe_config *then,
                       enum moe_key_id k,
                       moe_status *st) {
    char value[MOE_VALUE_TEXT_MAX], old[MOE_VALUE_TEXT_MAX], short_value[68], short_old[68];
    moe_value_format(now, k, value);
    moe_value_format(then, k, old);
    if (strcmp(value, old) == 0) {
        return MOE_OK;
    }
    moe_hint_quote(value[0] ? value : "nothing", short_value);
    moe_hint_quote(old[0] ? old : "nothing", short_old);
    return moe_fail(st, MOE_USER,
                    "%s was %s when the checkpoint was written and is %s now: a run goes on "
                    "only with the same model, optimiser and data",
                    moe_keys[k].full, short_old, short_value);
}

static int compare_steps(const moe_config *now, const moe_config *then, moe_status *st) {
    long long steps = now->run.steps, old = then->run.steps;
    if (steps < old) {
        return moe_fail(
            st, MOE_USER,
            "run.steps was %lld when the checkpoint was written and is %lld now: it may only rise",
            old, steps);
    }
    if (steps > old && now->train.schedule == MOE_SCHEDULE_COSINE) {
        return moe_fail(st, MOE_USER,
                        "run.steps was %lld when the checkpoint was written and is %lld now: with "
                        "train.schedule = cosine the learning "
                        "rate depends on it",
                        old, steps);
    }
    return MOE_OK;
}

int moe_checkpoint_same_run(const moe_config *now, const char *config_text, moe_status *st) {
    moe_config then;
    moe_config_defaults(&then);
    /* the text names the devices: any number of ranks gives the same answer */
    if (moe_config_parse(&then, config_text, (int64_t)strlen(config_text), "checkpoint", st) !=
        MOE_OK) {
        return st->code;
    }
    if (moe_config_resolve(&then, 1, st) != MOE_OK) {
        return st->code;
    }
    for (enum moe_key_id k = 0; k < MOE_NUM_KEYS && st->code == MOE_OK; k++) {
        if (!is_free(now, k)) {
            compare_key(now, &then, k, st);
        }
    }
    return st->code == MOE_OK && !moe_config_generates(now) ? compare_steps(now, &then, st)
                                                            : st->code;
}
