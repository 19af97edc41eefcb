/* config_print.c: the resolved echo and the table of --keys, both from the table of keys. */
#include <string.h>

#include "config/table.h"

/* Every line of text behind "; ". */
static void print_comment(const char *text, FILE *out) {
    while (*text != '\0') {
        const int length = (int)strcspn(text, "\n");
        fprintf(out, "; %.*s\n", length, text);
        text += length + (text[length] == '\n');
    }
}

/* Equal compute and parameters (DeepSeekMoE): both sides in columns of width F. */
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

/* " ; preset NAME: value" behind a key that differs from its preset. */
static void print_override(const moe_config *c, const moe_preset *preset, int k, FILE *out) {
    moe_config other;
    moe_status st = {0};
    char value[MOE_VALUE_TEXT_MAX], theirs[MOE_VALUE_TEXT_MAX];
    if (preset == NULL || !moe_preset_value(preset, k, theirs)) {
        return;
    }
    memset(&other, 0, sizeof other);
    moe_key_set(&other, k, theirs, "preset", &st);
    moe_key_format(&other, k, theirs);
    moe_key_format(c, k, value);
    if (strcmp(value, theirs) != 0) {
        fprintf(out, "   ; overrides preset %s: %s", preset->name,
                theirs[0] == '\0' ? "nothing" : theirs);
    }
}

static bool starts_section(int k) {
    return k == 0 || strcmp(moe_keys[k].section, moe_keys[k - 1].section) != 0;
}

void moe_config_print(const moe_config *c, FILE *out) {
    const moe_preset *preset =
        c->router.preset[0] != '\0' ? moe_preset_find(c->router.preset) : NULL;
    char value[MOE_VALUE_TEXT_MAX];
    fprintf(out, "; resolved for %d %s, %d on each; a token reaches at most %d devices\n",
            c->cluster.devices, c->cluster.devices == 1 ? "device" : "devices",
            c->cluster.devices / (c->ranks > 0 ? c->ranks : 1),
            c->router.top_k < c->comm_limit ? c->router.top_k : c->comm_limit);
    for (int k = 0; k < moe_num_keys; k++) {
        if (starts_section(k)) {
            fprintf(out, "\n[%s]\n", moe_keys[k].section);
        }
        if (moe_keys[k].type == MOE_KEY_PRESET && preset != NULL) {
            print_comment(preset->description, out);
        }
        if (strcmp(moe_keys[k].name, "expert_segmentation") == 0) {
            print_experts(c, out);
        }
        moe_key_format(c, k, value);
        fprintf(out, "%s =%s%s", moe_keys[k].name, value[0] != '\0' ? " " : "", value);
        print_override(c, preset, k, out);
        fputc('\n', out);
    }
}

/* "default, what is allowed" of a key, on the key's own line when that fits in 80 columns. */
static void print_key(int k, FILE *out) {
    const moe_key *key = &moe_keys[k];
    char allowed[600], head[2 * MOE_NAME_MAX + MOE_PATH_MAX];
    moe_key_allowed(k, allowed, sizeof allowed);
    if (key->type == MOE_KEY_PRESET) {
        snprintf(allowed, sizeof allowed, "one of the presets below");
    }
    if (key->type == MOE_KEY_PATH) {
        snprintf(allowed, sizeof allowed, "a path");
    }
    const int length =
        snprintf(head, sizeof head, "  %s.%s = %s", key->section, key->name, key->default_text);
    const bool fits = length + 4 + strlen(allowed) <= 80;
    fprintf(out, "%s%s(%s)\n      %s\n", head, fits ? "  " : "\n      ", allowed, key->sentence);
}

void moe_config_print_keys(FILE *out) {
    fprintf(out, "Keys: section.key = default  (what is allowed)\n");
    for (int k = 0; k < moe_num_keys; k++) {
        if (starts_section(k)) {
            fprintf(out, "\n[%s]\n", moe_keys[k].section);
        }
        print_key(k, out);
    }
    fprintf(out, "\nPresets: what stands in for keys that are not given\n");
    for (int i = 0; i < moe_num_presets; i++) {
        const char *text = moe_presets[i].description;
        fprintf(out, "\n  %s%s\n", moe_presets[i].name,
                moe_presets[i].settings == NULL ? " (not available yet)" : "");
        while (*text != '\0') {
            const int line = (int)strcspn(text, "\n");
            fprintf(out, "      %.*s\n", line, text);
            text += line + (text[line] == '\n');
        }
        if (moe_presets[i].settings != NULL) {
            fprintf(out, "      %s\n", moe_presets[i].settings);
        }
    }
}
