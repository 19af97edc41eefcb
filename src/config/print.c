/* print.c: the resolved configuration and the list of --keys, both from the table of keys. */
#include <string.h>

#include "config/config.h"
#include "config/kv_cache.h"
#include "config/presets.h"
#include "config/table.h"
#include "config/value.h"

/* --- the resolved configuration --- */

/* Prints every line of the text behind "; ". */
static void print_comment(const char *text, FILE *out) {
    while (*text != '\0') {
        const int length = (int)strcspn(text, "\n");
        fprintf(out, "; %.*s\n", length, text);
        text += length + (text[length] == '\n');
    }
}

/* What a token uses and what is stored, counted in columns of the experts' matrices. Where
 * expert_segmentation cut experts, both should equal what they were before (DeepSeekMoE). */
static void print_experts(const moe_config *c, FILE *out) {
    const int64_t width = c->model.moe_intermediate_size, shared = c->model.num_shared_experts;
    const int64_t active = (c->router.top_k + shared) * width,
                  stored = (c->model.num_experts + shared) * width;
    fprintf(out,
            "; a token uses (%d routed + %lld shared) experts x width %lld = %lld columns of (%d + "
            "%lld) x %lld = %lld\n",
            c->router.top_k, (long long)shared, (long long)width, (long long)active,
            c->model.num_experts, (long long)shared, (long long)width, (long long)stored);
    if (c->segmented.parts == 1) {
        return;
    }
    const int64_t active_before = (int64_t)c->segmented.top_k * c->segmented.moe_intermediate_size;
    const int64_t stored_before =
        (int64_t)c->segmented.num_experts * c->segmented.moe_intermediate_size;
    fprintf(out,
            "; cut by expert_segmentation = %d from top %d of %d experts of width %d: compute %lld "
            "= %lld, parameters %lld = %lld columns: "
            "%s\n",
            c->segmented.parts, c->segmented.top_k, c->segmented.num_experts,
            c->segmented.moe_intermediate_size, (long long)active, (long long)active_before,
            (long long)stored, (long long)stored_before,
            active == active_before && stored == stored_before ? "parity" : "no parity");
}

static void print_cache(const moe_config *c, FILE *out) {
    char text[256];
    moe_kv_cache_sentence(c, text, sizeof text);
    fprintf(out, "; %s\n", text);
}

/* Marks a key that differs from its preset: "   ; overrides preset NAME: value". */
static void print_override(const moe_config *c,
                           const moe_preset *preset,
                           enum moe_key_id key,
                           FILE *out) {
    moe_config other;
    moe_status st = {0};
    char value[MOE_VALUE_TEXT_MAX], theirs[MOE_VALUE_TEXT_MAX];
    const char *text = preset != NULL ? moe_preset_value(preset, key) : NULL;
    if (text == NULL) {
        return;
    }
    memset(&other, 0, sizeof other);
    moe_value_set(&other, key, text, "preset", &st);
    moe_value_format(&other, key, theirs);
    moe_value_format(c, key, value);
    if (strcmp(value, theirs) != 0) {
        fprintf(out, "   ; overrides preset %s: %s", preset->name,
                theirs[0] == '\0' ? "nothing" : theirs);
    }
}

void moe_config_print(const moe_config *c, FILE *out) {
    const moe_preset *preset = moe_preset_find(c->router.preset);
    char value[MOE_VALUE_TEXT_MAX];
    fprintf(out, "; resolved for %d %s, %d on each; a token reaches at most %d devices\n",
            c->cluster.devices, c->cluster.devices == 1 ? "device" : "devices",
            c->cluster.devices / (c->ranks > 0 ? c->ranks : 1),
            c->router.top_k < c->comm_limit ? c->router.top_k : c->comm_limit);
    for (enum moe_key_id k = 0; k < MOE_NUM_KEYS; k++) {
        if (moe_table_begins_section(k)) {
            fprintf(out, "\n[%s]\n", moe_keys[k].section);
        }
        if (k == MOE_KEY(router, preset) && preset != NULL) {
            print_comment(preset->description, out);
        }
        if (k == MOE_KEY(model, expert_segmentation)) {
            print_experts(c, out);
        }
        if (k == MOE_KEY(model, attention) && c->model.attention != MOE_ATTENTION_NONE) {
            print_cache(c, out);
        }
        moe_value_format(c, k, value);
        fprintf(out, "%s =%s%s", moe_keys[k].name, value[0] != '\0' ? " " : "", value);
        print_override(c, preset, k, out);
        fputc('\n', out);
    }
}

/* --- the list of keys and presets --- */

/* A key with its default and what is allowed, on one line when that fits in 80 columns, and its
 * sentence. */
static void print_key(enum moe_key_id k, FILE *out) {
    const moe_key *key = &moe_keys[k];
    char allowed[600], head[2 * MOE_NAME_MAX + MOE_PATH_MAX];
    moe_value_allowed(k, allowed, sizeof allowed);
    if (key->type == MOE_TYPE_PRESET) {
        snprintf(allowed, sizeof allowed, "one of the presets below");
    }
    if (key->type == MOE_TYPE_PATH) {
        snprintf(allowed, sizeof allowed, "a path");
    }
    if (key->type == MOE_TYPE_TEXT) {
        snprintf(allowed, sizeof allowed, "a text");
    }
    const int length = snprintf(head, sizeof head, "  %s = %s", key->full, key->default_text);
    const bool fits = length + 4 + strlen(allowed) <= 80;
    fprintf(out, "%s%s(%s)\n      %s\n", head, fits ? "  " : "\n      ", allowed, key->sentence);
}

/* The name of a preset, its description, and its settings in one line. */
static void print_preset(const moe_preset *preset, FILE *out) {
    const char *text = preset->description;
    fprintf(out, "\n  %s\n", preset->name);
    while (*text != '\0') {
        const int line = (int)strcspn(text, "\n");
        fprintf(out, "      %.*s\n", line, text);
        text += line + (text[line] == '\n');
    }
    fprintf(out, "     ");
    for (const moe_setting *s = preset->settings; s->key != MOE_KEY_NONE; s++) {
        fprintf(out, " %s=%s", moe_keys[s->key].full, s->value);
    }
    fputc('\n', out);
}

void moe_config_print_keys(FILE *out) {
    fprintf(out, "Keys: section.key = default  (what is allowed)\n");
    for (enum moe_key_id k = 0; k < MOE_NUM_KEYS; k++) {
        if (moe_table_begins_section(k)) {
            fprintf(out, "\n[%s]\n", moe_keys[k].section);
        }
        print_key(k, out);
    }
    fprintf(out, "\nPresets: what stands in for keys that are not given\n");
    for (int i = 0; i < moe_num_presets; i++) {
        print_preset(&moe_presets[i], out);
    }
}
