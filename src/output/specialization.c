/* specialization.c: what was measured as two files and as a section on the screen. */
#include "output/specialization.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "output/files.h"
#include "output/format.h"
#include "output/json.h"

/* --- names --- */

/* The domains of a text are the paths in data.path between its colons; topics have numbers. The
 * name has *length bytes and no NUL at its end; it is NULL where the domain has a number only. */
static const char *domain_name(const moe_config *c, int32_t domain, int *length) {
    const char *name = c->data.path;
    *length = 0;
    if (c->data.source != MOE_SOURCE_TEXT) {
        return NULL;
    }
    for (; domain > 0 && name; domain--) {
        name = strchr(name, ':');
        name = name ? name + 1 : NULL;
    }
    *length = name ? (int)strcspn(name, ":") : 0;
    return name;
}

static const int64_t *load_of(const moe_specialization *s, int32_t layer, int32_t domain) {
    return s->domain_load + ((int64_t)layer * s->num_domains + domain) * s->num_experts;
}

static moe_domain_score score_of(const moe_specialization *s, int32_t layer) {
    return moe_specialization_score(load_of(s, layer, 0), s->num_domains, s->num_experts, s->top_k);
}

/* --- files --- */

static json_t *disabled(const moe_specialization *s) {
    json_t *all = json_array();
    for (int32_t i = 0; i < s->num_disabled; i++) {
        json_t *one = json_object();
        json_object_set_new(one, "experts", json_integer(s->disabled[i]));
        json_object_set_new(one, "task_loss", moe_json_number(s->loss[i]));
        json_object_set_new(one, "rise", moe_json_number(s->loss[i] - s->loss[0]));
        json_array_append_new(all, one);
    }
    return all;
}

static json_t *without_shared(const moe_specialization *s) {
    json_t *one = json_object();
    if (!isfinite(s->loss_without_shared)) {
        json_decref(one);
        return json_null();
    }
    json_object_set_new(one, "routed_experts", json_integer(s->top_k + s->num_shared));
    json_object_set_new(one, "task_loss", moe_json_number(s->loss_without_shared));
    json_object_set_new(one, "rise", moe_json_number(s->loss_without_shared - s->loss[0]));
    return one;
}

static json_t *domains(const moe_specialization *s, const moe_config *c) {
    json_t *all = json_array();
    for (int32_t d = 0; d < s->num_domains; d++) {
        int length;
        const char *name = domain_name(c, d, &length);
        json_t *text = name ? json_stringn(name, (size_t)length) : json_integer(d);
        /* A name that is no UTF-8 is shown by its number. */
        json_array_append_new(all, text ? text : json_integer(d));
    }
    return all;
}

static json_t *layers(const moe_specialization *s) {
    json_t *all = json_array();
    for (int32_t l = 0; l < s->num_layers; l++) {
        moe_domain_score score = score_of(s, l);
        json_t *one = json_object();
        json_object_set_new(one, "mutual_information", moe_json_number(score.information));
        json_object_set_new(one, "score", moe_json_number(score.score));
        json_object_set_new(one, "chance", moe_json_number(score.chance));
        json_array_append_new(all, one);
    }
    return all;
}

static char *text_of(const moe_specialization *s, const moe_config *c) {
    json_t *all = json_object();
    json_object_set_new(all, "validation_batches", json_integer(s->batches));
    json_object_set_new(all, "disabled", disabled(s));
    json_object_set_new(all, "shared_replaced", without_shared(s));
    json_object_set_new(all, "domains", domains(s, c));
    json_object_set_new(all, "layers", layers(s));
    char *text = moe_json_indented(all);
    json_decref(all);
    return text;
}

int moe_specialization_write(const moe_comm *comm,
                             const moe_specialization *s,
                             const moe_config *c,
                             const char *folder,
                             moe_status *st) {
    char path[MOE_PATH_MAX + 32];
    int64_t shape[3] = {s->num_layers, s->num_domains, s->num_experts};
    moe_npy_piece all = {s->domain_load, 0, shape[0] * shape[1] * shape[2]};
    if (comm->rank == 0) {
        char *text = text_of(s, c);
        snprintf(path, sizeof path, "%s/%s", folder,
                 moe_result_files[MOE_RESULT_SPECIALIZATION].name);
        moe_file_write(path, text, st);
        free(text);
    }
    if (moe_comm_agree(comm, st)) {
        return st->code;
    }
    snprintf(path, sizeof path, "%s/%s", folder, moe_result_files[MOE_RESULT_DOMAIN_LOAD].name);
    return moe_comm_write_npy(comm, path, MOE_I64, 3, shape, &all, comm->rank == 0, st);
}

/* --- screen --- */

enum { LABEL = 14, NAME = 36 /* columns */, SHOWN_DOMAINS = 12, SHOWN_EXPERTS = 3 };

static void show_disabled(const moe_screen *screen, const moe_specialization *s) {
    fprintf(screen->out, "%-*s%10s %10s\n", NAME, "routed experts taken away", "loss", "rise");
    for (int32_t i = 0; i < s->num_disabled; i++) {
        fprintf(screen->out, "  each token's best %-*d%10s %10s\n", NAME - 20, s->disabled[i],
                moe_format_number(s->loss[i], 4).s,
                moe_format_number(s->loss[i] - s->loss[0], 4).s);
    }
    if (s->num_shared == 0) {
        return;
    }
    fprintf(screen->out, "  shared, for %-*d%10s %10s\n", NAME - 14, s->num_shared,
            moe_format_number(s->loss_without_shared, 4).s,
            moe_format_number(s->loss_without_shared - s->loss[0], 4).s);
}

/* Finds the index of the largest of n loads, and sets that load to -1. */
static int32_t take_largest(int64_t *load, int32_t n, int64_t *value) {
    int32_t best = 0;
    for (int32_t e = 1; e < n; e++) {
        best = load[e] > load[best] ? e : best;
    }
    *value = load[best];
    load[best] = -1;
    return best;
}

/* Shows the experts that a domain chose most often, with their share of its selections. */
static void show_domain(const moe_screen *screen,
                        const moe_specialization *s,
                        const moe_config *c,
                        int32_t domain) {
    int64_t *load = moe_alloc(s->num_experts, sizeof *load, "a section on the screen"), total = 0,
            most;
    int length;
    const char *name = domain_name(c, domain, &length);
    memcpy(load, load_of(s, 0, domain), (size_t)s->num_experts * sizeof *load);
    for (int32_t e = 0; e < s->num_experts; e++) {
        total += load[e];
    }
    /* The end of a long path tells more than its beginning. */
    int cut = length > NAME ? length - NAME : 0;
    char label[NAME + 8], text[SHOWN_EXPERTS * 32] = "";
    if (name) {
        snprintf(label, sizeof label, "  %-*.*s ", NAME, length - cut, name + cut);
    } else {
        snprintf(label, sizeof label, "  topic %-*d ", NAME - 6, domain);
    }
    for (int shown = 0, used = 0; shown < SHOWN_EXPERTS && shown < s->num_experts; shown++) {
        int32_t expert = take_largest(load, s->num_experts, &most);
        if (most > 0) {
            used += snprintf(text + used, sizeof text - (size_t)used, "%s%d\t(%.1f\t%%)",
                             shown ? ", " : "", expert, 100.0 * (double)most / (double)total);
        }
    }
    moe_screen_wrapped(screen, NAME + 3, label, "%s", text);
    moe_free(load);
}

static void show_domains(const moe_screen *screen,
                         const moe_specialization *s,
                         const moe_config *c) {
    int32_t shown = s->num_domains < SHOWN_DOMAINS ? s->num_domains : SHOWN_DOMAINS;
    if (s->num_domains < 2) {
        return;
    }
    for (int32_t l = 0; l < s->num_layers; l++) {
        moe_domain_score score = score_of(s, l);
        char label[32];
        snprintf(label, sizeof label, "layer %d", l);
        moe_screen_wrapped(screen, LABEL, label,
                           "score %s of 1 (by chance %s): how much the choice says of the %s",
                           moe_format_number(score.score, 3).s,
                           moe_format_number(score.chance, 3).s,
                           domain_name(c, 0, &(int){0}) ? "text" : "topic");
    }
    fprintf(screen->out, "%-*s %s\n", NAME + 2,
            c->data.source == MOE_SOURCE_TEXT ? "text" : "topic", "most chosen experts (layer 0)");
    for (int32_t d = 0; d < shown; d++) {
        show_domain(screen, s, c, d);
    }
    if (shown < s->num_domains) {
        fprintf(screen->out, "  and %d more: domain_load.npy\n", s->num_domains - shown);
    }
}

void moe_specialization_show(const moe_screen *screen,
                             const moe_specialization *s,
                             const moe_config *c) {
    if (screen->quiet) {
        return;
    }
    moe_screen_heading(screen, "Specialisation, on %lld held-out batches", (long long)s->batches);
    show_disabled(screen, s);
    show_domains(screen, s, c);
    fputs("  more in specialization.json and domain_load.npy\n", screen->out);
    fflush(screen->out);
}
