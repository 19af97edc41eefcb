/* format.c: numbers as short texts. */
#include "output/format.h"

#include <math.h>
#include <stdio.h>

moe_formatted moe_format_glued(moe_formatted text) {
    for (char *p = text.s; *p; p++) {
        if (*p == ' ') {
            *p = '\t';
        }
    }
    return text;
}

moe_formatted moe_format_count(int64_t n) {
    moe_formatted text = {""};
    char digits[32];
    int length = snprintf(digits, sizeof digits, "%lld", (long long)(n < 0 ? -n : n)), at = 0;
    if (n < 0) {
        text.s[at++] = '-';
    }
    for (int i = 0; i < length; i++) {
        if (i > 0 && (length - i) % 3 == 0) {
            text.s[at++] = ',';
        }
        text.s[at++] = digits[i];
    }
    return text;
}

moe_formatted moe_format_bytes(int64_t n) {
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    moe_formatted text;
    double value = (double)n / 1024;
    int unit = 0;
    for (; unit < 5 && value >= 1023.95; unit++) {
        value /= 1024;
    }
    if (n < 1024) {
        snprintf(text.s, sizeof text.s, "%lld B", (long long)n);
    } else {
        snprintf(text.s, sizeof text.s, "%.*f %s", value < 9.995 ? 2 : 1, value, units[unit]);
    }
    return text;
}

moe_formatted moe_format_seconds(double seconds) {
    moe_formatted text;
    if (seconds < 0.9995) {
        snprintf(text.s, sizeof text.s, "%.3g ms", seconds * 1e3);
    } else if (seconds < 99.95) {
        snprintf(text.s, sizeof text.s, "%.3g s", seconds);
    } else {
        snprintf(text.s, sizeof text.s, "%lld min %02lld s", (long long)round(seconds) / 60,
                 (long long)round(seconds) % 60);
    }
    return text;
}

moe_formatted moe_format_number(double value, int decimals) {
    moe_formatted text;
    if (!isfinite(value)) {
        snprintf(text.s, sizeof text.s, "-");
    } else if (fabs(value) < 1e9) {
        snprintf(text.s, sizeof text.s, "%.*f", decimals, value);
    } else {
        snprintf(text.s, sizeof text.s, "%.*e", decimals, value);
    }
    return text;
}

moe_formatted moe_format_short(double value, int decimals) {
    moe_formatted text = moe_format_number(value, decimals);
    if (fabs(value) >= 100) {
        text = moe_format_number(value, decimals > 2 ? decimals - 2 : 0);
    }
    if (fabs(value) >= 1e3) {
        text = moe_format_number(value, 0);
    }
    if (isfinite(value) && fabs(value) >= 1e6) {
        snprintf(text.s, sizeof text.s, "%.1e", value);
    }
    return text;
}
