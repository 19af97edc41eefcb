/* golden_case.h: one folder of tests/golden/routing: its settings, what is expected, and its
 * arrays. */
#ifndef GOLDEN_CASE_H
#define GOLDEN_CASE_H

#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/npy.h"
#include "check.h"

#ifndef MOESIM_GOLDEN_DIR
#define MOESIM_GOLDEN_DIR "tests/golden"
#endif

typedef struct golden_case {
    const char *dir, *name; /* dir/name/file */
    json_t *settings, *expected;
} golden_case;

typedef struct golden_array {
    moe_npy_header header;
    void *data; /* free with moe_free */
} golden_array;

static inline json_t *golden_json(const golden_case *g, const char *file) {
    char path[4096];
    json_error_t error;
    snprintf(path, sizeof path, "%s/%s/%s", g->dir, g->name, file);
    json_t *root = json_load_file(path, 0, &error);
    CHECK_MSG(root, "%s: %s", path, error.text);
    return root;
}

static inline golden_array golden_load_array(const golden_case *g, const char *file) {
    char path[4096];
    golden_array a = {0};
    moe_status st = {0};
    snprintf(path, sizeof path, "%s/%s/%s", g->dir, g->name, file);
    CHECK_MSG(moe_npy_read(path, &a.header, &a.data, &st) == MOE_OK, "%s", st.message);
    return a;
}

static inline bool golden_has(const golden_case *g, const char *file) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s/%s", g->dir, g->name, file);
    FILE *f = fopen(path, "rb");
    if (f) {
        fclose(f);
    }
    return f != NULL;
}

static inline double golden_f64(const golden_array *a, int64_t i) {
    return moe_npy_f64(&a->header, a->data, i);
}

static inline double golden_number(const golden_case *g, const char *key) {
    return json_number_value(json_object_get(g->settings, key));
}

static inline int32_t golden_int(const golden_case *g, const char *key) {
    return (int32_t)json_integer_value(json_object_get(g->settings, key));
}

static inline bool golden_true(const golden_case *g, const char *key) {
    return json_is_true(json_object_get(g->settings, key));
}

static inline bool golden_is(const golden_case *g, const char *key, const char *value) {
    const char *text = json_string_value(json_object_get(g->settings, key));
    return text && strcmp(text, value) == 0;
}

/* losses.NAME.f64_raw */
static inline const json_t *golden_loss(const golden_case *g, const char *name) {
    return json_object_get(json_object_get(json_object_get(g->expected, "losses"), name),
                           "f64_raw");
}

static inline bool golden_open(golden_case *g) {
    g->settings = golden_json(g, "case.json");
    g->expected = golden_json(g, "expected.json");
    return g->settings && g->expected;
}

static inline void golden_close(golden_case *g) {
    json_decref(g->settings);
    json_decref(g->expected);
}

#endif
