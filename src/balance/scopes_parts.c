/* scopes_parts.c: the count of scopes.c device by device, which keeps no cell longer than it has
 * to: the losses of a device are added to the sums as soon as it is routed, those of a sequence as
 * soon as its last token is. All sums are of integers, so that neither parts nor threads change
 * them. */
#include <string.h>

#include "balance/internal.h"
#include "base/status.h"

/* --- sequences that several parts hold --- */

int32_t moe_scopes_part_begin(const moe_batch *batch, int32_t parts, int32_t p) {
    return (int32_t)((int64_t)batch->num_local_devices * p / parts);
}

/* The place of a sequence in a list, or -1. */
static int64_t find(const int64_t *list, int64_t n, int64_t sequence) {
    for (int64_t i = 0; i < n; i++) {
        if (list[i] == sequence) {
            return i;
        }
    }
    return -1;
}

/* Lists the sequences that begin and end on this rank, and not in one part. */
static void list_cut(moe_scopes *s, const moe_batch *b, int32_t parts) {
    int64_t count = 0;
    moe_reserve(&s->cut_list, &s->cut_room, parts, sizeof *s->cut_list, "cut sequences");
    for (int32_t p = 1; p < parts; p++) {
        const int32_t first = b->first_device + moe_scopes_part_begin(b, parts, p);
        const int64_t q = moe_scopes_cut_sequence(b, first);
        if (q >= 0 && find(s->list, s->num_shared, q) < 0 && find(s->cut_list, count, q) < 0) {
            s->cut_list[count++] = q;
        }
    }
    const moe_stats *like = &s->global;
    moe_stats_reserve_slots(&s->cut, like->num_experts, like->devices, like->slots, count);
}

void moe_scopes_start(moe_scopes *s,
                      const moe_batch *batch,
                      const moe_placement *placement,
                      int32_t parts) {
    const int32_t n = placement->num_experts, d = placement->devices;
    const int32_t slots = placement->replicated ? moe_placement_slots(placement) : 0;
    moe_stats_reserve_slots(&s->sequence, n, d, slots, 0);
    moe_stats_reserve_slots(&s->device, n, d, slots, 0);
    moe_stats_reserve_slots(&s->global, n, d, slots, 1);
    moe_scopes_reserve_vector(s, batch);
    list_cut(s, batch, parts);
}

/* --- a part --- */

static void clear_sequence(const moe_scopes *s, moe_scopes_part *part) {
    const moe_stats *like = &s->global;
    moe_stats_reserve_slots(&part->sequence, like->num_experts, like->devices, like->slots, 1);
    part->open = -1;
}

void moe_scopes_part_start(const moe_scopes *s, moe_scopes_part *part) {
    const moe_stats *like = &s->global;
    moe_stats_reserve_slots(&part->sum, like->num_experts, like->devices, like->slots, 1);
    clear_sequence(s, part);
    memset(part->losses, 0, sizeof part->losses);
}

/* Who adds up a segment that is not all of its sequence: several ranks, several parts, or this one.
 */
static void add_to_sequence(moe_scopes *s,
                            moe_scopes_part *part,
                            const moe_balance *balance,
                            const moe_placement *placement,
                            const moe_segment *segment,
                            bool is_last,
                            const int64_t *cell) {
    const int64_t shared = find(s->list, s->num_shared, segment->sequence);
    const int64_t cut = find(s->cut_list, s->cut.num_cells, segment->sequence);
    if (shared >= 0 || cut >= 0) {
        int64_t *sum =
            shared >= 0 ? moe_stats_cell(&s->shared, shared + 1) : moe_stats_cell(&s->cut, cut);
#pragma omp critical(moe_scopes_parts)
        moe_stats_add(&s->global, sum, cell);
        return;
    }
    MOE_ASSERT(part->open < 0 || part->open == segment->sequence);
    part->open = segment->sequence;
    moe_stats_add(&s->global, part->sequence.cell, cell);
    if (is_last) {
        moe_scopes_add_losses(balance, placement, &part->sequence, part->sequence.cell,
                              part->losses[MOE_SCOPE_SEQUENCE]);
        clear_sequence(s, part);
    }
}

/* Adds the device's segments to their sequences. Returns whether it has one segment, which is a
 * sequence: its losses are then those of the device. */
static bool add_segments(moe_scopes *s,
                         moe_scopes_part *part,
                         const moe_balance *balance,
                         const moe_placement *placement,
                         const moe_batch *device,
                         const moe_stats *cells) {
    for (int64_t i = 0; i < device->num_segments; i++) {
        const moe_segment *segment = &device->segment[i];
        const bool is_first =
                       moe_batch_begins_sequence(device, device->first_token + segment->begin),
                   is_last = moe_batch_begins_sequence(device, device->first_token + segment->end);
        int64_t *cell = moe_stats_cell(cells, i);
        if (!is_first || !is_last) {
            add_to_sequence(s, part, balance, placement, segment, is_last, cell);
        } else if (device->num_segments == 1) {
            return true;
        } else {
            moe_scopes_add_losses(balance, placement, cells, cell,
                                  part->losses[MOE_SCOPE_SEQUENCE]);
        }
    }
    return false;
}

void moe_scopes_part_add(moe_scopes *s,
                         moe_scopes_part *part,
                         const moe_balance *balance,
                         const moe_placement *placement,
                         const moe_batch *device,
                         moe_stats *cells) {
    int64_t losses[MOE_SCOPES_MEAN_WORDS] = {0};
    if (device->num_segments == 0) {
        return;
    }
    const bool same = add_segments(s, part, balance, placement, device, cells);
    for (int64_t i = 1; i < device->num_segments; i++) {
        moe_stats_add(cells, cells->cell, moe_stats_cell(cells, i));
    }
    moe_scopes_add_losses(balance, placement, cells, cells->cell, losses);
    for (int w = 0; w < MOE_SCOPES_MEAN_WORDS; w++) {
        part->losses[MOE_SCOPE_DEVICE][w] += losses[w];
        part->losses[MOE_SCOPE_SEQUENCE][w] += same ? losses[w] : 0;
    }
    moe_stats_add(cells, part->sum.cell, cells->cell);
}

void moe_scopes_part_finish(moe_scopes *s, const moe_scopes_part *part) {
    MOE_ASSERT(part->open < 0);
    int64_t *losses = moe_scopes_loss_sums(s);
#pragma omp critical(moe_scopes_parts)
    {
        moe_stats_add(&s->global, s->shared.cell, part->sum.cell);
        for (int w = 0; w < MOE_SCOPES_MEAN_WORDS; w++) {
            losses[w] += part->losses[MOE_SCOPE_SEQUENCE][w];
            losses[MOE_SCOPES_MEAN_WORDS + w] += part->losses[MOE_SCOPE_DEVICE][w];
        }
    }
}

void moe_scopes_part_free(moe_scopes_part *part) {
    moe_stats_free(&part->sum);
    moe_stats_free(&part->sequence);
}

/* --- all parts --- */

void moe_scopes_parts_done(moe_scopes *s, const moe_balance *balance, const moe_placement *p) {
    for (int64_t i = 0; i < s->cut.num_cells; i++) {
        moe_scopes_add_losses(balance, p, &s->cut, moe_stats_cell(&s->cut, i),
                              moe_scopes_loss_sums(s));
    }
}
