/* cut.c: counting, cutting and settling one pool. */
#include "capacity/cut.h"

#include <string.h>

#include "base/scratch.h"
#include "capacity/radix.h"

/* Bins cover the values from 2^-24 to 2^8 in steps of 2^-(52-shift) of their power of two; what
 * lies outside is in the outermost bins. */
enum { FINEST = 46, COARSEST = 58 };

static uint64_t rise(double v) {
    return ~moe_radix_key(v);
}

static int32_t bins_of(int shift) {
    return (int32_t)((rise(0x1p8) - rise(0x1p-24)) >> shift) + 1;
}

moe_shape moe_cut_shape(const moe_capacity *c, bool exempt, int64_t max_words) {
    moe_shape s = {.targets = moe_capacity_targets(c),
                   .classes = exempt + (c->first_choices ? c->most_choices : 1),
                   .bins = 1,
                   .shift = COARSEST};
    s.exempt = exempt;
    s.has_keys = moe_drop_orders[c->drop].value && c->policy != MOE_CAPACITY_SEQUENCE;
    s.by_key = moe_drop_orders[c->drop].fills_by_key;
    if (!s.has_keys || s.by_key) {
        return s;
    }
    for (s.shift = FINEST; s.shift < COARSEST; s.shift++) {
        if ((int64_t)s.targets * s.classes * bins_of(s.shift) <= max_words) {
            break;
        }
    }
    s.bins = bins_of(s.shift);
    return s;
}

static int32_t bin_of(const moe_shape *s, uint64_t key) {
    uint64_t low = rise(0x1p-24);
    uint64_t high = rise(0x1p8);
    uint64_t v = ~key;
    if (s->bins == 1) {
        return 0;
    }
    return (int32_t)((high - (v < low ? low : v > high ? high : v)) >> s->shift);
}

/* Index of a pair's cell in the counts. Exempt pairs are all in the first bin of their class. */
static int64_t cell_of(const moe_shape *s, const moe_pairs *p, int64_t i) {
    int64_t group = p->group[i];
    if (s->bins == 1) {
        return group;
    }
    return group * s->bins + (s->exempt && group % s->classes == 0 ? 0 : bin_of(s, p->key[i]));
}

void moe_cut_count(const moe_shape *s, const moe_pairs *p, int64_t *count) {
    memset(count, 0, (size_t)moe_shape_words(s) * sizeof *count);
    for (int64_t i = 0; i < p->count; i++) {
        count[cell_of(s, p, i)]++;
    }
}

static moe_cut cut_target(const moe_shape *s, const int64_t *total, int64_t capacity) {
    int64_t cells = moe_shape_cells(s), x = 0;
    moe_cut cut = {.cell = cells};
    for (; s->exempt && x < s->bins; x++) {
        cut.exempt += total[x];
    }
    cut.kept = cut.exempt;
    for (; x < cells && cut.kept + total[x] <= capacity; x++) {
        cut.kept += total[x];
    }
    for (; x < cells && total[x] == 0; x++) /* budgets that exempt pairs overrun */
        ;
    if (x == cells) {
        return cut;
    }
    cut.cell = x;
    cut.room = capacity > cut.kept ? capacity - cut.kept : 0;
    cut.kept += cut.room;
    return cut;
}

void moe_cut_targets(const moe_shape *s, const int64_t *total, int64_t capacity, moe_cut *cut) {
    for (int32_t target = 0; target < s->targets; target++) {
        cut[target] = cut_target(s, total + target * moe_shape_cells(s), capacity);
    }
}

/* --- the keys that must be known --- */

static bool is_listed(const moe_shape *s, const moe_cut *cut, int64_t cell) {
    if (!s->has_keys || cell > cut->cell) {
        return false;
    }
    return cell < cut->cell ? s->by_key : cut->room > 0;
}

int64_t moe_cut_listed(const moe_shape *s, const moe_cut *cut, const int64_t *count) {
    int64_t cells = moe_shape_cells(s), sum = 0;
    for (int32_t target = 0; target < s->targets; target++) {
        for (int64_t x = 0; x < cells && x <= cut[target].cell; x++) {
            if (is_listed(s, &cut[target], x)) {
                sum += count[target * cells + x];
            }
        }
    }
    return sum;
}

/* begin [words] = where each cell's keys begin in a part's list, or -1 where they are not listed.
 */
static void list_begins(const moe_shape *s,
                        const moe_cut *cut,
                        const int64_t *count,
                        int64_t *begin) {
    int64_t cells = moe_shape_cells(s), sum = 0;
    for (int64_t i = 0; i < moe_shape_words(s); i++) {
        bool listed = is_listed(s, &cut[i / cells], i % cells);
        begin[i] = listed ? sum : -1;
        sum += listed ? count[i] : 0;
    }
}

void moe_cut_list(const moe_shape *s,
                  const moe_cut *cut,
                  const int64_t *count,
                  const moe_pairs *p,
                  uint64_t *keys) {
    int64_t *cursor = moe_scratch_take(s->scratch, moe_shape_words(s), sizeof *cursor, "capacity");
    list_begins(s, cut, count, cursor);
    for (int64_t i = 0; i < p->count; i++) {
        int64_t cell = cell_of(s, p, i);
        if (cursor[cell] >= 0) {
            keys[cursor[cell]++] = p->key[i];
        }
    }
    moe_scratch_give(s->scratch, cursor);
}

/* --- selection inside a cell --- */

/* What became of the listed pairs of this rank. */
typedef struct verdicts {
    int64_t *begin; /* [words] of this rank's list */
    int64_t *place; /* [listed] place in the order of the cell; -1 = gone */
    int64_t pairs;  /* of this rank in the pool: more keys than most steps list, so that memory of
                       this size seldom grows */
    int64_t *kept_before; /* [targets] pairs that stay in earlier parts */
} verdicts;

/* One listed cell: takes its keys from all parts in rank order; the first `room` of them stay. */
static void settle_cell(const moe_shape *s,
                        const moe_parts *parts,
                        int64_t *const *part_begin,
                        int64_t cell,
                        int64_t room,
                        verdicts *v) {
    int64_t n = 0;
    int64_t target = cell / moe_shape_cells(s);
    int64_t smaller = 0;
    int64_t own = 0;
    int64_t mine = parts->count[parts->self][cell];
    for (int q = 0; q < parts->num; q++) {
        own = q == parts->self ? n : own;
        n += parts->count[q][cell];
    }
    if (n == 0) {
        return;
    }
    int64_t usual = n > v->pairs ? n : v->pairs;
    uint64_t *key = moe_scratch_take_varying(s->scratch, usual, sizeof *key, "capacity");
    uint64_t last = UINT64_MAX;
    for (int64_t q = 0, at = 0; q < parts->num; at += parts->count[q++][cell]) {
        memcpy(key + at, parts->keys[q] + part_begin[q][cell],
               (size_t)parts->count[q][cell] * sizeof *key);
    }
    if (room < n) {
        last = moe_radix_nth(key, n, room, &smaller);
    }
    int64_t equal = room < n ? room - smaller : n;
    for (int64_t i = 0; i < own + mine; i++) {
        bool stays = key[i] < last || (key[i] == last && equal-- > 0);
        if (i < own) {
            v->kept_before[target] += stays;
        }
        if (i >= own) {
            v->place[v->begin[cell] + i - own] = stays ? 0 : -1;
        }
    }
    if (s->by_key) {
        moe_radix_entry *memory =
            moe_scratch_take_varying(s->scratch, 2 * n, sizeof *memory, "capacity");
        for (int64_t i = 0; i < n; i++) {
            memory[i] = (moe_radix_entry){key[i], i};
        }
        const moe_radix_entry *order = moe_radix_sort(memory, memory + n, n);
        for (int64_t i = 0; i < n && i < room; i++) {
            if (order[i].place >= own && order[i].place < own + mine) {
                v->place[v->begin[cell] + order[i].place - own] = i;
            }
        }
        moe_scratch_give(s->scratch, memory);
    }
    moe_scratch_give(s->scratch, key);
}

static verdicts settle_cells(const moe_shape *s,
                             const moe_parts *parts,
                             const moe_cut *cut,
                             int64_t pairs) {
    int64_t words = moe_shape_words(s), cells = moe_shape_cells(s);
    int64_t **begin = moe_scratch_take(s->scratch, parts->num, sizeof *begin, "capacity");
    verdicts v = {.pairs = pairs,
                  .kept_before =
                      moe_scratch_take_zero(s->scratch, s->targets, sizeof(int64_t), "capacity")};
    v.place = moe_scratch_take(s->scratch, pairs + 1, sizeof *v.place, "capacity");
    for (int q = 0; q < parts->num; q++) {
        begin[q] = moe_scratch_take(s->scratch, words, sizeof **begin, "capacity");
        list_begins(s, cut, parts->count[q], begin[q]);
    }
    v.begin = begin[parts->self];
    for (int64_t i = 0; i < words; i++) {
        const moe_cut *c = &cut[i / cells];
        if (is_listed(s, c, i % cells)) {
            settle_cell(s, parts, begin, i, i % cells == c->cell ? c->room : INT64_MAX, &v);
        } else if (i % cells < c->cell) {
            for (int q = 0; q < parts->self; q++) {
                v.kept_before[i / cells] += parts->count[q][i];
            }
        }
    }
    for (int q = 0; q < parts->num; q++) {
        if (q != parts->self) {
            moe_scratch_give(s->scratch, begin[q]);
        }
    }
    moe_scratch_give(s->scratch, begin);
    return v;
}

/* first [words] = pairs of earlier cells of the target in all parts; before [words] = pairs of the
 * same cell in earlier parts. */
static void first_places(const moe_shape *s,
                         const moe_parts *parts,
                         int64_t *first,
                         int64_t *before) {
    int64_t cells = moe_shape_cells(s), sum = 0;
    for (int64_t i = 0; i < moe_shape_words(s); i++) {
        sum = i % cells == 0 ? 0 : sum;
        first[i] = sum;
        before[i] = 0;
        for (int q = 0; q < parts->num; q++) {
            before[i] += q < parts->self ? parts->count[q][i] : 0;
            sum += parts->count[q][i];
        }
    }
}

void moe_cut_settle(const moe_shape *s,
                    const moe_parts *parts,
                    const moe_cut *cut,
                    const moe_pairs *p,
                    uint8_t *kept,
                    int32_t *slot) {
    int64_t words = moe_shape_words(s), cells = moe_shape_cells(s);
    int64_t *first = moe_scratch_take(s->scratch, 2 * words, sizeof *first, "capacity"),
            *before = first + words; /* before: counts on with the pairs gone by */
    verdicts v = settle_cells(s, parts, cut, p->count);
    first_places(s, parts, first, before);
    for (int64_t i = 0; i < p->count; i++) {
        int64_t cell = cell_of(s, p, i);
        int64_t target = cell / cells;
        int64_t x = cell % cells;
        int64_t place = v.begin[cell] >= 0     ? v.place[v.begin[cell]++]
                        : x < cut[target].cell ? before[cell]
                                               : -1;
        if (!s->has_keys) {
            place =
                x < cut[target].cell || (x == cut[target].cell && before[cell] < cut[target].room)
                    ? before[cell]
                    : -1;
        }
        before[cell]++;
        kept[i] = place >= 0;
        slot[i] = place < 0 ? -1
                            : (int32_t)(!s->has_keys || s->by_key ? first[cell] + place
                                                                  : v.kept_before[target]++);
    }
    moe_scratch_give(s->scratch, first);
    moe_scratch_give(s->scratch, v.begin);
    moe_scratch_give(s->scratch, v.place);
    moe_scratch_give(s->scratch, v.kept_before);
}
