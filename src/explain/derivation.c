/* derivation.c: a list of derived figures that grows, each compared with the one that is reported.
 */
#include "explain/derivation.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "explain/derive_internal.h"

const char *const moe_derived_sections[MOE_NUM_DERIVED_SECTIONS] = {"Losses", "Devices per token",
                                                                    "Volume", "Balance"};

static const double tolerance = 1e-11; /* relative, for sums in another order */

void moe_derivation_add(moe_derivation *d,
                        enum moe_derived_section section,
                        int32_t layer,
                        const char *name,
                        moe_derived_numbers n,
                        const char *formula,
                        const char *format,
                        ...) {
    va_list arguments;
    if (d->count == d->capacity) {
        d->capacity = d->capacity ? 2 * d->capacity : 64;
        moe_derived *more = moe_alloc(d->capacity, sizeof *more, "derivation");
        if (d->count) {
            memcpy(more, d->item, (size_t)d->count * sizeof *more);
        }
        moe_free(d->item);
        d->item = more;
    }
    moe_derived *item = &d->item[d->count++];
    *item = (moe_derived){.section = section,
                          .layer = layer,
                          .micro_batch = -1,
                          .value = n.value,
                          .reported = n.reported,
                          .aside = layer > 0};
    snprintf(item->name, sizeof item->name, "%s", name);
    snprintf(item->formula, sizeof item->formula, "%s", formula);
    va_start(arguments, format);
    vsnprintf(item->filled, sizeof item->filled, format, arguments);
    va_end(arguments);
    item->agrees =
        fabs(n.value - n.reported) <= tolerance * fmax(fabs(n.value), fabs(n.reported)) ||
        fabs(n.value - n.reported) < 1e-15;
    d->disagree += !item->agrees;
}

void moe_pieces_add(moe_pieces *p, const char *format, ...) {
    va_list arguments;
    int left = (int)sizeof p->text - p->length;
    va_start(arguments, format);
    int length = vsnprintf(p->text + p->length, (size_t)left, format, arguments);
    va_end(arguments);
    p->length += length < left ? length : left - 1;
}

void moe_derivation_free(moe_derivation *d) {
    moe_free(d->item);
    moe_free(d->micro);
    *d = (moe_derivation){0};
}
