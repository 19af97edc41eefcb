/* config_hint.c: what the user may have meant: nearest words, and sentences about unknown sections
 * and keys. */
#include <stdio.h>
#include <string.h>

#include "config/table.h"

enum { LONGEST_WORD = 63, FAR = 1000 };

static int min2(int a, int b) {
    return a < b ? a : b;
}

/* Optimal string alignment: three rows of the usual table. */
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

void moe_hint_quote(const char *text, char out[68]) {
    size_t length = strnlen(text, 61);
    const bool cut = length > 60;
    if (cut) {
        length = 57;
    }
    while (cut && length > 0 && ((unsigned char)text[length] & 0xc0) == 0x80) {
        length--; /* not inside a UTF-8 character */
    }
    memcpy(out, text, length);
    for (size_t i = 0; i < length; i++) {
        if ((unsigned char)out[i] < 32 || out[i] == 127) {
            out[i] = '?';
        }
    }
    snprintf(out + length, 68 - length, "%s", cut ? "..." : "");
}

void moe_hint_place(const char *file_name, int line, char place[MOE_PLACE_TEXT_MAX]) {
    const int length = (int)strlen(file_name), room = MOE_PLACE_TEXT_MAX - 20;
    if (length <= room) {
        snprintf(place, MOE_PLACE_TEXT_MAX, "%.*s:%d", room, file_name, line);
    } else {
        snprintf(place, MOE_PLACE_TEXT_MAX, "...%.*s:%d", room, file_name + length - room, line);
    }
}

int moe_key_unknown_section(const char *section, const char *place, moe_status *st) {
    int best = -1, best_distance = FAR;
    char quoted[68];
    moe_hint_quote(section, quoted);
    for (int k = 0; k < moe_num_keys; k++) {
        const int distance = moe_hint_distance(section, moe_keys[k].section);
        if (moe_hint_near(section, distance) && distance < best_distance) {
            best = k;
            best_distance = distance;
        }
    }
    if (best >= 0) {
        return moe_fail(st, MOE_USER, "%s: [%s]: there is no such section, did you mean [%s]?",
                        place, quoted, moe_keys[best].section);
    }
    char all[256] = "";
    for (int k = 0; k < moe_num_keys; k++) {
        const size_t length = strlen(all);
        if (k == 0 || strcmp(moe_keys[k].section, moe_keys[k - 1].section) != 0) {
            snprintf(all + length, sizeof all - length, "%s%s", k > 0 ? ", " : "",
                     moe_keys[k].section);
        }
    }
    return moe_fail(st, MOE_USER, "%s: [%s]: there is no such section, allowed are %s", place,
                    quoted, all);
}

/* The key nearest to `name`: in its own section if one is near, else in any section; -1 = none is
 * near. */
static int nearest_key(const char *section, const char *name) {
    int best = -1, best_rank = 2 * FAR;
    for (int k = 0; k < moe_num_keys; k++) {
        const int distance = moe_hint_distance(name, moe_keys[k].name);
        const bool elsewhere = strcmp(section, moe_keys[k].section) != 0;
        const int rank = distance == 0 ? 0
                         : elsewhere   ? FAR / 2 + distance
                                       : distance; /* the same word elsewhere comes first */
        if (moe_hint_near(name, distance) && rank < best_rank) {
            best = k;
            best_rank = rank;
        }
    }
    return best;
}

int moe_key_unknown(const char *section, const char *name, const char *place, moe_status *st) {
    char quoted[68], quoted_section[68];
    const int best = nearest_key(section, name);
    moe_hint_quote(name, quoted);
    moe_hint_quote(section, quoted_section);
    const char *dot = section[0] != '\0' ? "." : "";
    if (best < 0) {
        return moe_fail(st, MOE_USER,
                        "%s: %s%s%s: there is no such key; moesim --keys lists all keys", place,
                        quoted_section, dot, quoted);
    }
    return moe_fail(st, MOE_USER, "%s: %s%s%s: there is no such key, did you mean %s.%s?", place,
                    quoted_section, dot, quoted, moe_keys[best].section, moe_keys[best].name);
}
