/* serve.c: see serve.h. */
#include "placement/serve.h"

#include <math.h>
#include <string.h>

#include "base/alloc.h"

/* --- counting --- */

void moe_choices_count(const moe_choices *c, int32_t n, double *load, double *pairs) {
    memset(load, 0, (size_t)n * sizeof *load);
    for (int64_t t = 0; t < c->num_tokens; t++) {
        const int32_t *mine = c->expert + t * c->k;
        for (int32_t i = 0; i < c->k; i++) {
            if (mine[i] < 0) {
                continue;
            }
            load[mine[i]]++;
            for (int32_t j = 0; pairs && j < c->k; j++) {
                if (j != i && mine[j] >= 0) {
                    pairs[(int64_t)mine[i] * n + mine[j]]++;
                }
            }
        }
    }
}

/* --- serving --- */

typedef struct server {
    const moe_balancer_problem *p;
    const moe_balancer_answer *a;
    const moe_choices *c;
    int32_t *slot_of; /* [slots] the slots, sorted by expert and then by number */
    int32_t *first;   /* [N+1] those of expert e: slot_of[first[e]] .. */
    int64_t *quota;   /* [slots] what a slot may still serve; NULL where replicas share evenly */
    int32_t *slot;    /* [T,k] */
} server;

static void sort_slots(server *s) {
    const int32_t n = s->p->num_experts;
    int32_t *next = moe_alloc(n, sizeof *next, "serving");
    s->slot_of = moe_alloc(s->a->slots, sizeof *s->slot_of, "serving");
    s->first = moe_alloc(n + 1, sizeof *s->first, "serving");
    s->first[0] = 0;
    for (int32_t e = 0; e < n; e++) {
        next[e] = s->first[e];
        s->first[e + 1] = s->first[e] + s->a->replicas[e];
    }
    for (int32_t i = 0; i < s->a->slots; i++) {
        s->slot_of[next[s->a->expert[i]]++] = i;
    }
    moe_free(next);
}

static int32_t device_of(const server *s, int32_t slot) {
    return slot / s->a->slots_per_device;
}
static int32_t node_of(const server *s, int32_t device) {
    return device / (s->p->devices / s->p->nodes);
}

/* How near a slot is to the home of a token: 0 its device, 1 its node, 2 elsewhere. */
static int distance(const server *s, int32_t slot, int32_t home) {
    const int32_t device = device_of(s, slot);
    return device == home ? 0 : node_of(s, device) == node_of(s, home) ? 1 : 2;
}

/* The replica that token t takes of those that are nearest. */
static int32_t nearest(const server *s, int32_t expert, int64_t t, int32_t home) {
    int32_t count[3] = {0};
    for (int32_t i = s->first[expert]; i < s->first[expert + 1]; i++) {
        count[distance(s, s->slot_of[i], home)]++;
    }
    const int near = count[0] > 0 ? 0 : count[1] > 0 ? 1 : 2;
    int32_t skip = (int32_t)(t % count[near]), i = s->first[expert];
    while (distance(s, s->slot_of[i], home) != near || skip-- > 0) {
        i++;
    }
    return s->slot_of[i];
}

static void serve_evenly(server *s) {
    for (int64_t t = 0; t < s->c->num_tokens; t++) {
        for (int64_t i = t * s->c->k; i < (t + 1) * s->c->k; i++) {
            s->slot[i] = s->c->expert[i] < 0 ? -1 : nearest(s, s->c->expert[i], t, s->c->home[t]);
        }
    }
}

/* Rounds the running sums of an expert's parts, so that the quotas sum to its load. */
static void round_quotas(server *s) {
    for (int32_t e = 0; e < s->p->num_experts; e++) {
        double sum = 0;
        int64_t given = 0;
        for (int32_t i = s->first[e]; i < s->first[e + 1]; i++) {
            sum += s->a->served[s->slot_of[i]];
            const int64_t rounded = (int64_t)floor(sum + 0.5);
            s->quota[s->slot_of[i]] = rounded - given;
            given = rounded;
        }
    }
}

/* Gives the choices without a slot, token by token, to slots with a quota that are so near. */
static void serve_within(server *s, int near) {
    for (int64_t t = 0; t < s->c->num_tokens; t++) {
        for (int64_t i = t * s->c->k; i < (t + 1) * s->c->k; i++) {
            const int32_t e = s->c->expert[i];
            for (int32_t j = e < 0 ? 0 : s->first[e]; e >= 0 && j < s->first[e + 1]; j++) {
                const int32_t slot = s->slot_of[j];
                if (s->slot[i] < 0 && s->quota[slot] > 0 &&
                    distance(s, slot, s->c->home[t]) <= near) {
                    s->quota[slot]--;
                    s->slot[i] = slot;
                }
            }
        }
    }
}

static void serve_quotas(server *s) {
    s->quota = moe_alloc(s->a->slots, sizeof *s->quota, "serving");
    round_quotas(s);
    for (int64_t i = 0; i < s->c->num_tokens * s->c->k; i++) {
        s->slot[i] = -1;
    }
    for (int near = 0; near < 3; near++) {
        serve_within(s, near);
    }
    moe_free(s->quota);
}

void moe_serve_choices(const moe_balancer_problem *problem,
                       const moe_balancer_answer *answer,
                       bool quotas,
                       const moe_choices *choices,
                       int32_t *slot) {
    server s = {.p = problem, .a = answer, .c = choices, .slot = slot};
    sort_slots(&s);
    if (quotas) {
        serve_quotas(&s);
    } else {
        serve_evenly(&s);
    }
    moe_free(s.slot_of);
    moe_free(s.first);
}

/* --- figures --- */

typedef struct counter {
    const server *s;
    int64_t *served, *received; /* [D] selections and rows */
    int64_t *seen_device;       /* [D] the last token that reached a device; [V] and a node */
    int64_t *seen_node;
    moe_serve_figures figures;
} counter;

static void count_choice(counter *c, int64_t t, int32_t slot) {
    const server *s = c->s;
    const int32_t device = device_of(s, slot), node = node_of(s, device), home = s->c->home[t];
    const bool crosses = node != node_of(s, home);
    c->figures.selections++;
    c->served[device]++;
    if (c->seen_device[device] != t) {
        c->seen_device[device] = t;
        c->received[device]++;
        c->figures.rows++;
        c->figures.cross_device_rows += device != home;
        c->figures.cross_node_rows += crosses;
    }
    if (c->seen_node[node] != t) {
        c->seen_node[node] = t;
        c->figures.cross_node_tokens += crosses;
    }
}

static double max_over_mean(const int64_t *count, int32_t n) {
    int64_t most = 0, sum = 0;
    for (int32_t i = 0; i < n; i++) {
        most = count[i] > most ? count[i] : most;
        sum += count[i];
    }
    return sum > 0 ? (double)most * n / (double)sum : 1;
}

moe_serve_figures moe_serve_measure(const moe_balancer_problem *problem,
                                    const moe_balancer_answer *answer,
                                    const moe_choices *choices,
                                    const int32_t *slot) {
    const int32_t devices = problem->devices, nodes = problem->nodes;
    const server s = {.p = problem, .a = answer, .c = choices};
    counter c = {.s = &s};
    c.served = moe_alloc_zero(devices, sizeof *c.served, "serving");
    c.received = moe_alloc_zero(devices, sizeof *c.received, "serving");
    c.seen_device = moe_alloc(devices, sizeof *c.seen_device, "serving");
    c.seen_node = moe_alloc(nodes, sizeof *c.seen_node, "serving");
    memset(c.seen_device, 0xff, (size_t)devices * sizeof *c.seen_device); /* no token: -1 */
    memset(c.seen_node, 0xff, (size_t)nodes * sizeof *c.seen_node);
    for (int64_t t = 0; t < choices->num_tokens; t++) {
        for (int64_t i = t * choices->k; i < (t + 1) * choices->k; i++) {
            if (slot[i] >= 0) {
                count_choice(&c, t, slot[i]);
            }
        }
    }
    c.figures.device_max_over_mean = max_over_mean(c.served, devices);
    c.figures.receiver_max_over_mean = max_over_mean(c.received, devices);
    moe_free(c.served);
    moe_free(c.received);
    moe_free(c.seen_device);
    moe_free(c.seen_node);
    return c.figures;
}
