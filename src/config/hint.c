/* hint.c: places, quotes and nearest words for messages. */
#include "config/hint.h"

#include <stdio.h>
#include <string.h>

#include "config/table.h"

enum { LONGEST_WORD = 63, FAR = 1000 };

static int min2(int a, int b) {
    return a < b ? a : b;
}

/* The usual table of distances between beginnings of both words, of which three rows are kept. */
int moe_hint_distance(const char *a, const char *b) {
    const int n = (int)strnlen(a, LONGEST_WORD + 1), m = (int)strnlen(b, LONGEST_WORD + 1);
    int row[3][LONGEST_WORD + 1];
    if (n > LONGEST_WORD || m > LONGEST_WORD) {
        return FAR;
    }
    for (int j = 0; j <= m; j++) {
        row[0][j] = j;
    }
    for (int i = 1; i <= n; i++) {
        int *now = row[i % 3];
        int *above = row[(i + 2) % 3];
        int *two_above = row[(i + 1) % 3];
        now[0] = i;
        for (int j = 1; j <= m; j++) {
            now[j] = min2(min2(above[j], now[j - 1]) + 1, above[j - 1] + (a[i - 1] != b[j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
                now[j] = min2(now[j], two_above[j - 2] + 1);
            }
        }
    }
    return row[n % 3][m];
}

bool moe_hint_near(const char *word, int distance) {
    const int third = (int)strnlen(word, LONGEST_WORD) / 3;
    return distance <= (third > 1 ? third : 1) && word[0] != '\0';
}

void moe_hint_quote(const char *text, char out[MOE_QUOTE_MAX]) {
    size_t length = strnlen(text, 61);
    const bool cut = length > 60;
    if (cut) {
        length = 57;
    }
    while (cut && length > 0 && ((unsigned char)text[length] & 0xc0) == 0x80) {
        length--; /* a UTF-8 character is not cut in two */
    }
    memcpy(out, text, length);
    for (size_t i = 0; i < length; i++) {
        if ((unsigned char)out[i] < 32 || out[i] == 127) {
            out[i] = '?';
        }
    }
    snprintf(out + length, MOE_QUOTE_MAX - length, "%s", cut ? "..." : "");
}

void moe_hint_place(const char *file_name, int line, char place[MOE_PLACE_TEXT_MAX]) {
    const int length = (int)strlen(file_name), room = MOE_PLACE_TEXT_MAX - 20;
    if (length <= room) {
        snprintf(place, MOE_PLACE_TEXT_MAX, "%.*s:%d", room, file_name, line);
    } else {
        snprintf(place, MOE_PLACE_TEXT_MAX, "...%.*s:%d", room, file_name + length - room, line);
    }
}

int moe_hint_unknown_section(const char *section, const char *place, moe_status *st) {
    enum moe_key_id best = MOE_KEY_NONE;
    int best_distance = FAR;
    char quoted[MOE_QUOTE_MAX];
    moe_hint_quote(section, quoted);
    for (enum moe_key_id k = 0; k < MOE_NUM_KEYS; k++) {
        const int distance = moe_hint_distance(section, moe_keys[k].section);
        if (moe_hint_near(section, distance) && distance < best_distance) {
            best = k;
            best_distance = distance;
        }
    }
    if (best != MOE_KEY_NONE) {
        return moe_fail(st, MOE_USER, "%s: [%s]: there is no such section, did you mean [%s]?",
                        place, quoted, moe_keys[best].section);
    }
    char all[256] = "";
    for (enum moe_key_id k = 0; k < MOE_NUM_KEYS; k++) {
        const size_t length = strlen(all);
        if (moe_table_begins_section(k)) {
            snprintf(all + length, sizeof all - length, "%s%s", k > 0 ? ", " : "",
                     moe_keys[k].section);
        }
    }
    return moe_fail(st, MOE_USER, "%s: [%s]: there is no such section, allowed are %s", place,
                    quoted, all);
}

/* The key nearest to `name`: one of that very name in any section, else one of its own section that
 * is near, else one of any section that is near; MOE_KEY_NONE when none is. */
static enum moe_key_id nearest_key(const char *section, const char *name) {
    enum moe_key_id best = MOE_KEY_NONE;
    int best_rank = 2 * FAR;
    for (enum moe_key_id k = 0; k < MOE_NUM_KEYS; k++) {
        const int distance = moe_hint_distance(name, moe_keys[k].name);
        const bool elsewhere = strcmp(section, moe_keys[k].section) != 0;
        const int rank = distance == 0 ? 0 : elsewhere ? FAR / 2 + distance : distance;
        if (moe_hint_near(name, distance) && rank < best_rank) {
            best = k;
            best_rank = rank;
        }
    }
    return best;
}

int moe_hint_unknown_key(const char *section, const char *name, const char *place, moe_status *st) {
    char quoted[MOE_QUOTE_MAX], quoted_section[MOE_QUOTE_MAX];
    const enum moe_key_id best = nearest_key(section, name);
    moe_hint_quote(name, quoted);
    moe_hint_quote(section, quoted_section);
    const char *dot = section[0] != '\0' ? "." : "";
    if (best == MOE_KEY_NONE) {
        return moe_fail(st, MOE_USER,
                        "%s: %s%s%s: there is no such key; moesim --keys lists all keys", place,
                        quoted_section, dot, quoted);
    }
    return moe_fail(st, MOE_USER, "%s: %s%s%s: there is no such key, did you mean %s?", place,
                    quoted_section, dot, quoted, moe_keys[best].full);
}
