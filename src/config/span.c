/* span.c: how many devices some groups of experts lie on at most.
 *
 * Groups and devices are both blocks of neighbouring experts. With b = gcd(G, D) their borders fall
 * together b - 1 times, so that the experts fall into b equal parts of G/b groups and D/b devices,
 * inside which no two borders meet. A choice of groups that reaches as many devices as possible is
 * a covering by intervals, whose value is concave in the number of groups: the parts share the M
 * groups as evenly as possible. */
#include "config/config.h"

enum { MOST_GROUPS = 1024 }; /* of a part: its groups x devices are at most 2^20 experts */

static int32_t smaller(int32_t a, int32_t b) {
    return a < b ? a : b;
}

static int32_t common_divisor(int32_t a, int32_t b) {
    while (b != 0) {
        const int32_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* Groups smaller than a device: every border of devices inside a part runs through one group, which
 * lies on two devices. Groups across every other border share none of them. */
static int32_t span_of_small(int32_t m, int32_t groups, int32_t devices, int32_t parts) {
    (void)groups;
    const int32_t pairs = parts * (devices / 2), all = parts * devices;
    return m <= pairs ? 2 * m : smaller(pairs + m, all);
}

/* Groups larger than a device: neighbours share the device in which their border lies. Over the
 * groups from left to right, with[i] and without[i] are the most devices that i of the groups so
 * far lie on, the last one among them or not. */
static int32_t span_in_part(int32_t m, int32_t groups, int32_t devices) {
    int32_t with[MOST_GROUPS + 1], without[MOST_GROUPS + 1] = {0};
    MOE_ASSERT(groups <= MOST_GROUPS);
    for (int32_t i = 0; i <= m; i++) {
        with[i] = without[i] = i == 0 ? 0 : -1; /* -1: there are not so many */
    }
    for (int64_t g = 0; g < groups; g++) {
        const int32_t first = (int32_t)(g * devices / groups);
        const int32_t last = (int32_t)(((g + 1) * devices - 1) / groups);
        for (int32_t i = smaller(m, (int32_t)g + 1); i >= 0; i--) {
            const int32_t skipped = with[i] > without[i] ? with[i] : without[i];
            const int32_t apart = i > 0 ? without[i - 1] : -1;
            const int32_t beside = i > 1 ? with[i - 1] - 1 : -1;
            const int32_t before = apart > beside ? apart : beside;
            without[i] = skipped;
            with[i] = before < 0 ? -1 : before + last - first + 1;
        }
    }
    return with[m] > without[m] ? with[m] : without[m];
}

static int32_t span_of_large(int32_t m, int32_t groups, int32_t devices, int32_t parts) {
    const int32_t each = m / parts, more = m % parts;
    const int32_t span = (parts - more) * span_in_part(each, groups, devices);
    return more == 0 ? span : span + more * span_in_part(each + 1, groups, devices);
}

int32_t moe_config_group_span(const moe_config *c) {
    const int32_t groups = c->router.num_groups, devices = c->cluster.devices;
    const int32_t parts = common_divisor(groups, devices);
    const int32_t m = smaller(c->router.topk_group, groups);
    return (groups > devices ? span_of_small : span_of_large)(m, groups / parts, devices / parts,
                                                              parts);
}
