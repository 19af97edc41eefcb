/* unit_keys.c: the table of keys: ids and names, values and ranges, what --keys prints, and the
 * distance of words. */
#include "check.h"
#include "config/config.h"
#include "config/hint.h"
#include "config/table.h"
#include "config/value.h"

/* The id of every row of keys.def leads to its name, and the name back to the id. */
static void test_ids(void) {
#define MOE_KEY_ROW(section_, key, ...)                                           \
    CHECK_STR(moe_keys[MOE_KEY(section_, key)].section, #section_);               \
    CHECK_STR(moe_keys[MOE_KEY(section_, key)].name, #key);                       \
    CHECK_STR(moe_keys[MOE_KEY(section_, key)].full, #section_ "." #key);         \
    CHECK_EQ(moe_table_find(#section_, #key), MOE_KEY(section_, key));            \
    CHECK_EQ(moe_table_find_full(#section_ "." #key, strlen(#section_ "." #key)), \
             MOE_KEY(section_, key));
#include "config/keys.def"
    CHECK_EQ(moe_table_find("router", "topk"), MOE_KEY_NONE);
    CHECK_EQ(moe_table_find("run", "top_k"), MOE_KEY_NONE);
    CHECK_EQ(moe_table_find_full("router.top_kk", strlen("router.top_kk")), MOE_KEY_NONE);
    CHECK_EQ(moe_table_find_full("router.top", strlen("router.top")), MOE_KEY_NONE);
}

/* Keys of a section stand together, so that each section begins once. */
static void test_sections(void) {
    int begun = 0;
    for (enum moe_key_id k = 0; k < MOE_NUM_KEYS; k++) {
        CHECK(moe_table_has_section(moe_keys[k].section));
        if (!moe_table_begins_section(k)) {
            continue;
        }
        begun++;
        for (enum moe_key_id before = 0; before < k; before++) {
            CHECK_MSG(!moe_table_same_section(before, k), "[%s] twice", moe_keys[k].section);
        }
    }
    CHECK_EQ(begun, 12);
    CHECK(!moe_table_has_section("ruoter") && !moe_table_has_section(""));
}

/* Settings of our own are like --set: they count as given, and the first that is not allowed fails.
 */
static void test_override(void) {
    moe_config c;
    moe_status st = {0};
    moe_config_defaults(&c);
    moe_value_override_all(
        &c, MOE_SETTINGS(MOE_SET(router, top_k, 3), MOE_SET(router, score_func, sigmoid)), &st);
    CHECK(st.code == MOE_OK && c.router.top_k == 3 && c.router.score_func == MOE_SCORE_SIGMOID);
    CHECK(moe_config_given(&c, MOE_KEY(router, top_k)) &&
          !moe_config_given(&c, MOE_KEY(router, method)));
    CHECK_EQ(c.place[MOE_KEY(router, top_k)], MOE_PLACE_SET);
    moe_value_override_all(&c, MOE_SETTINGS(MOE_SET(router, top_k, none), MOE_SET(run, steps, 7)),
                           &st);
    CHECK_STR(st.message, "--set: router.top_k = none: allowed is a whole number from 1 to 65536");
    CHECK(c.router.top_k == 3 && c.run.steps == 1);
}

static void test_table(void) {
    moe_config c;
    moe_config_defaults(&c);
    for (enum moe_key_id k = 0; k < MOE_NUM_KEYS; k++) {
        const moe_key *key = &moe_keys[k];
        char text[MOE_VALUE_TEXT_MAX], again[MOE_VALUE_TEXT_MAX], bad[MOE_VALUE_TEXT_MAX + 2];
        const char *full = key->full;
        char joined[2 * MOE_NAME_MAX];
        moe_status st = {0};
        const size_t length = strlen(key->sentence);
        CHECK_MSG(length > 10 && key->sentence[length - 1] == '.', "%s.%s has no sentence",
                  key->section, key->name);
        snprintf(joined, sizeof joined, "%s.%s", key->section, key->name);
        CHECK_STR(full, joined);
        CHECK_MSG(moe_table_find(key->section, key->name) == k &&
                      moe_table_find_full(full, strlen(full)) == k,
                  "%s twice", full);
        CHECK_MSG(moe_value_set(&c, k, key->default_text, "default", &st) == MOE_OK, "%s",
                  st.message);
        moe_value_format(&c, k, text);
        CHECK_MSG(moe_value_set(&c, k, text, "echo", &st) == MOE_OK, "%s", st.message);
        moe_value_format(&c, k, again);
        CHECK_MSG(strcmp(text, again) == 0, "%s: %s, %s", full, text, again);
        for (int i = 0; moe_table_enum_name(k, i) != NULL; i++) {
            CHECK(moe_value_set(&c, k, moe_table_enum_name(k, i), "enum", &st) == MOE_OK);
            CHECK(moe_config_enum_name(k, i) == moe_table_enum_name(k, i));
        }
        if (key->type == MOE_TYPE_PATH || key->type == MOE_TYPE_TEXT) {
            continue;
        }
        snprintf(bad, sizeof bad, "%s!", text);
        CHECK_MSG(moe_value_set(&c, k, bad, "bad", &st) == MOE_USER &&
                      strstr(st.message, full) != NULL,
                  "%s = %s was accepted", full, bad);
    }
}

static void test_ranges(void) {
    moe_config c;
    moe_config_defaults(&c);
    for (enum moe_key_id k = 0; k < MOE_NUM_KEYS; k++) {
        char text[64];
        moe_status st = {0};
        if (moe_keys[k].type > MOE_TYPE_DOUBLE) {
            continue;
        }
        const bool whole = moe_keys[k].type != MOE_TYPE_DOUBLE;
        const double ends[2] = {moe_keys[k].min, moe_keys[k].max};
        for (int e = 0; e < 2; e++) {
            snprintf(text, sizeof text, whole ? "%.0f" : "%.17g", ends[e]);
            CHECK_MSG(moe_value_set(&c, k, text, "end", &st) == MOE_OK, "%s", st.message);
            const double outside =
                ends[e] + (e == 0 ? -1 : 2) * (whole ? 1 : fabs(ends[e]) * 1e-9 + 1e-9);
            snprintf(text, sizeof text, whole ? "%.0f" : "%.17g", outside);
            CHECK_MSG(moe_value_set(&c, k, text, "outside", &st) == MOE_USER,
                      "%s.%s = %s was accepted", moe_keys[k].section, moe_keys[k].name, text);
            st.code = MOE_OK;
        }
        static const char *const bad[] = {
            "", "nan", "inf", "0x10", "1 2", "1e", "--1", "1e999", "99999999999999999999", "six"};
        for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
            CHECK_MSG(moe_value_set(&c, k, bad[i], "bad", &st) == MOE_USER,
                      "%s.%s = %s was accepted", moe_keys[k].section, moe_keys[k].name, bad[i]);
        }
    }
}

/* Doubles survive the echo to the last bit. */
static void test_doubles(void) {
    static const char *const values[] = {"0.1",    "0.12345678901234567",     "0.3333333333333333",
                                         "1e-300", "2.2250738585072014e-308", "999999.9999999999"};
    const enum moe_key_id k = MOE_KEY(balance, alpha_expert);
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        moe_config c;
        moe_status st = {0};
        char text[MOE_VALUE_TEXT_MAX];
        moe_config_defaults(&c);
        CHECK(moe_value_set(&c, k, values[i], "test", &st) == MOE_OK);
        moe_value_format(&c, k, text);
        CHECK_MSG(strtod(text, NULL) == strtod(values[i], NULL) &&
                      strlen(text) <= strlen(values[i]),
                  "%s: %s", values[i], text);
    }
}

static void test_distance(void) {
    CHECK(moe_hint_distance("", "") == 0 && moe_hint_distance("abc", "abc") == 0);
    CHECK(moe_hint_distance("abc", "acb") == 1 && moe_hint_distance("abc", "ab") == 1 &&
          moe_hint_distance("abc", "axc") == 1);
    CHECK(moe_hint_distance("kitten", "sitting") == 3 && moe_hint_distance("", "abc") == 3);
    CHECK(moe_hint_near("router", 2) && !moe_hint_near("router", 3) && moe_hint_near("ab", 1) &&
          !moe_hint_near("", 0));
}

static void test_keys(void) {
    char *text = NULL;
    size_t length;
    FILE *out = open_memstream(&text, &length);
    moe_config_print_keys(out);
    fclose(out);
    for (enum moe_key_id k = 0; k < MOE_NUM_KEYS; k++) {
        char head[2 * MOE_NAME_MAX + MOE_VALUE_TEXT_MAX];
        snprintf(head, sizeof head, "  %s = %s", moe_keys[k].full, moe_keys[k].default_text);
        CHECK_MSG(strstr(text, head) != NULL && strstr(text, moe_keys[k].sentence) != NULL, "%s",
                  head);
    }
    free(text);
}

int main(void) {
    RUN(test_ids);
    RUN(test_sections);
    RUN(test_table);
    RUN(test_ranges);
    RUN(test_doubles);
    RUN(test_override);
    RUN(test_distance);
    RUN(test_keys);
    return check_verdict();
}
