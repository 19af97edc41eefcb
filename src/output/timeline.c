/* timeline.c: the spans of all ranks are gathered on rank 0 and printed as trace events. */
#include "output/timeline.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/file.h"
#include "output/files.h"
#include "output/json.h"

/* --- the spans of all ranks on rank 0 --- */

typedef struct gathered {
    moe_span *span;          /* [total] on rank 0, rank after rank */
    int64_t *count, *offset; /* [ranks] spans of each rank, and where they begin */
    int64_t total;
} gathered;

static gathered gather(const moe_comm *comm, const moe_timeline *t) {
    int n = comm->size;
    int64_t *bytes = moe_alloc(n, sizeof *bytes, "timeline");
    int64_t *none = moe_alloc_zero(n, sizeof *none, "timeline");
    int64_t *mine = moe_alloc_zero(n, sizeof *mine, "timeline");
    gathered g = {.count = moe_alloc(n, sizeof *g.count, "timeline"),
                  .offset = moe_alloc_zero(n, sizeof *g.offset, "timeline")};
    for (int q = 0; q < n; q++) {
        bytes[q] = sizeof(int64_t);
    }
    moe_comm_allgatherv(comm, &t->count, g.count, bytes);
    for (int q = 0; q < n; q++) {
        g.offset[q] = g.total;
        g.total += g.count[q];
    }
    mine[0] = t->count;
    bool root = comm->rank == 0;
    if (root) {
        g.span = moe_alloc(g.total, sizeof *g.span, "timeline");
    }
    moe_comm_alltoallv(comm, (moe_blocks){t->span, mine, none},
                       (moe_blocks){g.span, root ? g.count : none, root ? g.offset : none},
                       sizeof(moe_span), g.total);
    moe_free(bytes);
    moe_free(none);
    moe_free(mine);
    return g;
}

static void gathered_free(gathered *g) {
    moe_free(g->span);
    moe_free(g->count);
    moe_free(g->offset);
}

/* The spans of this rank on the clock of rank 0. */
static moe_timeline on_common_clock(const moe_comm *comm, const moe_timeline *t) {
    double offset = moe_comm_clock_offset(comm);
    moe_timeline out = *t;
    out.span = moe_alloc(t->count, sizeof *out.span, "timeline");
    for (int64_t i = 0; i < t->count; i++) {
        out.span[i] = t->span[i];
        out.span[i].begin -= offset;
        out.span[i].end -= offset;
    }
    return out;
}

/* --- text --- */

/* A process stands for a host and has the number of its first rank. Numbers begin at 1: trace
 * viewers keep 0 for the idle task. */
static int process_of(const moe_topology *topologies, int rank) {
    int first = 0;
    while (strcmp(topologies[first].host, topologies[rank].host) != 0) {
        first++;
    }
    return first + 1;
}

/* The thread of a rank, or of its chunks on their way there (1) or back (2), which lie beside what
 * it does. */
static int thread_of(const moe_config *c, int rank, int flight) {
    return (c->exchange.chunks > 1 ? 3 : 1) * rank + flight + 1;
}

static void print_name(FILE *out, const char *kind, int process, int thread, const char *name) {
    json_t *string = json_string(name);
    char *quoted = json_dumps(string ? string : json_null(), JSON_ENCODE_ANY);
    fprintf(out, "{\"ph\":\"M\",\"pid\":%d,\"tid\":%d,\"name\":\"%s\",\"args\":{\"name\":%s}},\n",
            process, thread, kind, quoted ? quoted : "\"\"");
    free(quoted);
    json_decref(string);
}

static void print_names(FILE *out,
                        const moe_config *c,
                        const moe_topology *topologies,
                        int rank,
                        int ranks) {
    static const char *const ways[] = {"on the way to the experts", "on the way back"};
    char name[128];
    int devices = c->cluster.devices / ranks, process = process_of(topologies, rank),
        thread = thread_of(c, rank, 0);
    snprintf(name, sizeof name, "host %s", topologies[rank].host);
    if (process == rank + 1) {
        print_name(out, "process_name", process, thread, name);
    }
    if (devices == 1) {
        snprintf(name, sizeof name, "rank %d: device %d", rank, rank);
    } else {
        snprintf(name, sizeof name, "rank %d: devices %d-%d", rank, rank * devices,
                 (rank + 1) * devices - 1);
    }
    print_name(out, "thread_name", process, thread, name);
    for (int flight = 1; flight <= 2 && c->exchange.chunks > 1 && ranks > 1; flight++) {
        snprintf(name, sizeof name, "rank %d: %s", rank, ways[flight - 1]);
        print_name(out, "thread_name", process, thread_of(c, rank, flight), name);
    }
}

/* What the span moved or computed. A combine goes the other way: it sends what the dispatch
 * received. */
static void print_rows(FILE *out, const moe_span *s, bool chunked) {
    const moe_span_rows *r = &s->rows;
    bool back = s->kind == MOE_PHASE_COMBINE || s->kind == MOE_SPAN_COMBINE_BACKWARD;
    if (s->kind == MOE_PHASE_EXPERT || s->kind == MOE_SPAN_EXPERT_BACKWARD) {
        fprintf(out, ",\"rows\":%lld,\"selections\":%lld", (long long)r->received,
                (long long)r->selections);
    } else if (back || s->kind == MOE_PHASE_DISPATCH || s->kind == MOE_SPAN_DISPATCH_BACKWARD) {
        fprintf(out, ",\"rows_sent\":%lld,\"rows_received\":%lld,\"rows_own\":%lld",
                (long long)(back ? r->received : r->sent),
                (long long)(back ? r->sent : r->received), (long long)r->own);
    } else if (moe_span_flight(s->kind) > 0) {
        fprintf(out, ",\"rows_sent\":%lld,\"rows_received\":%lld", (long long)r->sent,
                (long long)r->received);
    } else {
        return;
    }
    if (chunked) {
        fprintf(out, ",\"chunk\":%d", r->chunk);
    }
}

typedef struct rank_line { /* what all spans of a rank share */
    const moe_config *config;
    int process, rank, devices;
    int64_t step;
    double origin;
} rank_line;

/* Both ends are rounded to nanoseconds rather than the duration, so that spans that nest still do.
 */
static void print_span(FILE *out, const moe_span *s, const rank_line *on) {
    long long begin = llround((s->begin - on->origin) * 1e9),
              end = llround((s->end - on->origin) * 1e9);
    fprintf(out, "{\"ph\":\"X\",\"pid\":%d,\"tid\":%d,\"ts\":%.3f,\"dur\":%.3f,\"name\":\"%s",
            on->process, thread_of(on->config, on->rank, moe_span_flight(s->kind)),
            (double)begin / 1e3, (double)(end - begin) / 1e3, moe_span_names[s->kind]);
    if (s->kind == MOE_SPAN_LAYER) {
        fprintf(out, " %d", s->layer);
    }
    if (s->layer >= 0) {
        fprintf(out, "\",\"args\":{\"layer\":%d", s->layer);
    } else {
        fprintf(out, "\",\"args\":{\"step\":%lld", (long long)on->step);
    }
    if (s->kind == MOE_SPAN_STEP) {
        fprintf(out, ",\"first_device\":%d,\"devices\":%d", on->rank * on->devices, on->devices);
    }
    print_rows(out, s, on->config->exchange.chunks > 1);
    fputs("}}", out);
}

static void print_events(FILE *out,
                         const gathered *g,
                         const moe_config *c,
                         const moe_topology *topologies,
                         int ranks,
                         int64_t step) {
    double origin = g->total > 0 ? g->span[0].begin : 0;
    for (int q = 0; q < ranks; q++) {
        if (g->count[q] > 0 && g->span[g->offset[q]].begin < origin) {
            origin = g->span[g->offset[q]].begin;
        }
    }
    for (int q = 0; q < ranks; q++) {
        print_names(out, c, topologies, q, ranks);
    }
    for (int q = 0; q < ranks; q++) {
        rank_line on = {c, process_of(topologies, q), q, c->cluster.devices / ranks, step, origin};
        for (int64_t i = g->offset[q]; i < g->offset[q] + g->count[q]; i++) {
            print_span(out, &g->span[i], &on);
            fputs(i + 1 < g->total ? ",\n" : "\n", out);
        }
    }
}

static char *text_of(const moe_comm *comm,
                     const moe_timeline *t,
                     const gathered *g,
                     const moe_config *c,
                     const moe_topology *topologies,
                     int64_t step) {
    char *text = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&text, &length);
    if (!out) {
        moe_out_of_memory("the timeline", 0);
    }
    fprintf(
        out,
        "{\"displayTimeUnit\":\"ms\",\n\"otherData\":{\"version\":\"%s\",\"step\":%lld,\"ranks\":%"
        "d,\"devices\":%d,\"layers\":%d,"
        "\"devices_per_rank\":%d,\"spans_left_out\":%lld,\"clock\":\"%s\"},\n\"traceEvents\":[\n",
        MOESIM_VERSION, (long long)step, comm->size, c->cluster.devices, c->model.num_layers,
        c->cluster.devices / comm->size, (long long)t->left_out * comm->size,
        comm->num_hosts == 1
            ? "of the host, the same for all ranks"
            : "of rank 0; other hosts' clocks are compared with it by messages after the step");
    print_events(out, g, c, topologies, comm->size, step);
    fputs("]}\n", out);
    if (fclose(out) != 0) {
        moe_out_of_memory("the timeline", (int64_t)length);
    }
    return text;
}

int moe_timeline_write(const moe_comm *comm,
                       const moe_timeline *t,
                       const moe_config *c,
                       const moe_topology *topologies,
                       int64_t step,
                       const char *folder,
                       moe_status *st) {
    moe_timeline common = on_common_clock(comm, t);
    gathered g = gather(comm, &common);
    if (comm->rank == 0) {
        char path[MOE_PATH_MAX + 32], *text = text_of(comm, t, &g, c, topologies, step);
        snprintf(path, sizeof path, "%s/%s", folder, moe_result_files[MOE_RESULT_TIMELINE].name);
        moe_file_write(path, text, st);
        free(text);
    }
    gathered_free(&g);
    moe_timeline_free(&common);
    return moe_comm_agree(comm, st);
}
