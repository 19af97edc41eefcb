/* value.c: one value of the configuration: from text, to text, and what is allowed. */
#include "config/value.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/hint.h"
#include "config/presets.h"

/* --- from text --- */

static void *field(const moe_config *c, enum moe_key_id k) {
    return (char *)(uintptr_t)c + moe_keys[k].offset;
}

static bool parse_int(const char *text, double min, double max, int64_t *out) {
    char *end;
    errno = 0;
    const long long value = strtoll(text, &end, 10);
    if (text[0] == '\0' || strchr(" \t\n\v\f\r", text[0]) != NULL || *end != '\0' || errno != 0) {
        return false;
    }
    *out = value;
    return (double)value >= min && (double)value <= max;
}

static bool parse_double(const char *text, double min, double max, double *out) {
    char *end;
    if (text[0] == '\0' || text[strspn(text, "0123456789+-.eE")] != '\0') {
        return false; /* strtod would also take inf, nan and hexadecimal numbers */
    }
    *out = strtod(text, &end);
    if (*out == 0) {
        *out = 0; /* also for -0, which would be printed as such */
    }
    return *end == '\0' && isfinite(*out) && *out >= min && *out <= max;
}

static bool parse_bool(const char *text, bool *out) {
    static const char *const yes[] = {"yes", "true", "on", "1"};
    static const char *const no[] = {"no", "false", "off", "0"};
    for (int i = 0; i < 4; i++) {
        if (strcmp(text, yes[i]) == 0 || strcmp(text, no[i]) == 0) {
            *out = strcmp(text, yes[i]) == 0;
            return true;
        }
    }
    return false;
}

static bool parse_enum(enum moe_key_id k, const char *text, int *out) {
    for (int i = 0; moe_table_enum_name(k, i) != NULL; i++) {
        if (strcmp(text, moe_table_enum_name(k, i)) == 0) {
            *out = i;
            return true;
        }
    }
    return false;
}

/* A path has to survive being written to a file and read again: it may have no control characters
 * and nothing that looks like a comment. */
static bool parse_path(const char *text, char *out) {
    const size_t length = strlen(text);
    if (length >= MOE_PATH_MAX || strchr(";#", text[0] != '\0' ? text[0] : ' ') != NULL) {
        return false;
    }
    if (length > 0 && (text[0] == ' ' || text[length - 1] == ' ')) {
        return false;
    }
    for (size_t i = 0; i < length; i++) {
        if ((unsigned char)text[i] < 32 || text[i] == 127) {
            return false;
        }
        if (i > 0 && text[i - 1] == ' ' && (text[i] == ';' || text[i] == '#')) {
            return false;
        }
    }
    memcpy(out, text, length + 1);
    return true;
}

static bool parse_preset(const char *text, char *out) {
    if (text[0] != '\0' && moe_preset_find(text) == NULL) {
        return false;
    }
    snprintf(out, MOE_NAME_MAX, "%s", text);
    return true;
}

/* Puts the value of `text` into the field when it is allowed, and says whether it is. */
static bool parse_value(moe_config *c, enum moe_key_id k, const char *text) {
    const moe_key *key = &moe_keys[k];
    void *out = field(c, k);
    int64_t integer;
    double number;
    switch (key->type) {
    case MOE_TYPE_INT32:
        if (!parse_int(text, key->min, key->max, &integer)) {
            return false;
        }
        *(int32_t *)out = (int32_t)integer;
        return true;
    case MOE_TYPE_INT64:
        if (!parse_int(text, key->min, key->max, &integer)) {
            return false;
        }
        *(int64_t *)out = integer;
        return true;
    case MOE_TYPE_DOUBLE:
        if (!parse_double(text, key->min, key->max, &number)) {
            return false;
        }
        *(double *)out = number;
        return true;
    case MOE_TYPE_BOOL:
        return parse_bool(text, out);
    case MOE_TYPE_ENUM:
        return parse_enum(k, text, out);
    case MOE_TYPE_PATH:
    case MOE_TYPE_TEXT:
        return parse_path(text, out);
    case MOE_TYPE_PRESET:
        return parse_preset(text, out);
    }
    return false;
}

/* --- to text --- */

/* The shortest text that reads back to the same double. */
static void format_double(double value, char *text, size_t capacity) {
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, capacity, "%.*g", digits, value);
        if (strtod(text, NULL) == value) {
            return;
        }
    }
}

void moe_value_format(const moe_config *c, enum moe_key_id k, char text[MOE_VALUE_TEXT_MAX]) {
    const moe_key *key = &moe_keys[k];
    const void *in = field(c, k);
    text[0] = '\0';
    switch (key->type) {
    case MOE_TYPE_INT32:
        snprintf(text, MOE_VALUE_TEXT_MAX, "%d", *(const int32_t *)in);
        break;
    case MOE_TYPE_INT64:
        snprintf(text, MOE_VALUE_TEXT_MAX, "%lld", (long long)*(const int64_t *)in);
        break;
    case MOE_TYPE_DOUBLE:
        format_double(*(const double *)in, text, MOE_VALUE_TEXT_MAX);
        break;
    case MOE_TYPE_BOOL:
        snprintf(text, MOE_VALUE_TEXT_MAX, "%s", *(const bool *)in ? "yes" : "no");
        break;
    case MOE_TYPE_ENUM:
        MOE_ASSERT(moe_table_enum_name(k, *(const int *)in) != NULL);
        snprintf(text, MOE_VALUE_TEXT_MAX, "%s", moe_table_enum_name(k, *(const int *)in));
        break;
    case MOE_TYPE_PATH:
    case MOE_TYPE_TEXT:
    case MOE_TYPE_PRESET:
        snprintf(text, MOE_VALUE_TEXT_MAX, "%s", (const char *)in);
        break;
    }
}

/* --- what is allowed --- */

/* Appends to a text of the given capacity, which cuts what does not fit. */
MOE_PRINTF(3, 4) static void append(char *text, size_t capacity, const char *format, ...) {
    const size_t length = strlen(text);
    va_list args;
    va_start(args, format);
    vsnprintf(text + length, capacity - length, format, args);
    va_end(args);
}

void moe_value_allowed(enum moe_key_id k, char *text, size_t capacity) {
    const moe_key *key = &moe_keys[k];
    char low[32], high[32];
    text[0] = '\0';
    switch (key->type) {
    case MOE_TYPE_INT32:
    case MOE_TYPE_INT64:
        snprintf(text, capacity, "a whole number from %.0f to %.0f", key->min, key->max);
        break;
    case MOE_TYPE_DOUBLE:
        format_double(key->min, low, sizeof low);
        format_double(key->max, high, sizeof high);
        snprintf(text, capacity, "a number from %s to %s", low, high);
        break;
    case MOE_TYPE_BOOL:
        snprintf(text, capacity, "yes or no");
        break;
    case MOE_TYPE_ENUM:
        for (int i = 0; moe_table_enum_name(k, i) != NULL; i++) {
            append(text, capacity, "%s%s", i > 0 ? ", " : "one of ", moe_table_enum_name(k, i));
        }
        break;
    case MOE_TYPE_PATH:
        snprintf(text, capacity,
                 "a path of at most %d characters without ' ;', ' #' and control characters",
                 MOE_PATH_MAX - 1);
        break;
    case MOE_TYPE_TEXT:
        snprintf(text, capacity,
                 "a text of at most %d bytes without ' ;', ' #' and control characters (\\n is a "
                 "line end, \\s a blank)",
                 MOE_PATH_MAX - 1);
        break;
    case MOE_TYPE_PRESET:
        for (int i = 0; i < moe_num_presets; i++) {
            append(text, capacity, "%s%s", i > 0 ? ", " : "nothing or one of ",
                   moe_presets[i].name);
        }
        break;
    }
}

/* --- giving a key its value --- */

/* Number i of the names that an enum or preset key allows; NULL when there are no more. */
static const char *allowed_name(enum moe_key_id k, int i) {
    if (moe_keys[k].type != MOE_TYPE_PRESET) {
        return moe_table_enum_name(k, i);
    }
    return i < moe_num_presets ? moe_presets[i].name : NULL;
}

/* The allowed name nearest to `text`; NULL when none is near. */
static const char *nearest_name(enum moe_key_id k, const char *text) {
    const char *nearest = NULL;
    int best = 0;
    for (int i = 0; allowed_name(k, i) != NULL; i++) {
        const int distance = moe_hint_distance(text, allowed_name(k, i));
        if (moe_hint_near(text, distance) && (nearest == NULL || distance < best)) {
            best = distance;
            nearest = allowed_name(k, i);
        }
    }
    return nearest;
}

int moe_value_set(moe_config *c,
                  enum moe_key_id k,
                  const char *text,
                  const char *place,
                  moe_status *st) {
    if (parse_value(c, k, text)) {
        return MOE_OK;
    }
    char quoted[MOE_QUOTE_MAX], allowed[600];
    const char *nearest = nearest_name(k, text);
    moe_hint_quote(text[0] != '\0' ? text : "(empty)", quoted);
    moe_value_allowed(k, allowed, sizeof allowed);
    if (nearest != NULL) {
        return moe_fail(st, MOE_USER, "%s: %s = %s: allowed is %s (nearest is %s)", place,
                        moe_keys[k].full, quoted, allowed, nearest);
    }
    return moe_fail(st, MOE_USER, "%s: %s = %s: allowed is %s", place, moe_keys[k].full, quoted,
                    allowed);
}

int moe_value_override(moe_config *c, enum moe_key_id key, const char *text, moe_status *st) {
    if (moe_value_set(c, key, text, "--set", st) == MOE_OK) {
        c->place[key] = MOE_PLACE_SET;
        c->given[key] = 1;
    }
    return st->code;
}

int moe_value_override_all(moe_config *c, const moe_setting *settings, moe_status *st) {
    for (const moe_setting *s = settings; s->key != MOE_KEY_NONE && st->code == MOE_OK; s++) {
        moe_value_override(c, s->key, s->value, st);
    }
    return st->code;
}
