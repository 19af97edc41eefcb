/* terminal_header.c: the beginning of a run on the screen: what runs, and where. */
#include <stdlib.h>
#include <string.h>

#include "config/idle.h"
#include "config/kv_cache.h"
#include "config/table.h"
#include "config/value.h"
#include "exchange/payload.h"
#include "output/format.h"
#include "output/terminal.h"
#include "output/terminal_internal.h"

enum { LABEL = 11, MOST_PLACES = 8 };

/* --- what runs --- */

static void print_model(const moe_screen *s, const moe_config *c) {
    char shared[48] = "", dense[96] = "";
    if (c->model.num_shared_experts > 0) {
        snprintf(shared, sizeof shared, " and %d shared", c->model.num_shared_experts);
    }
    if (c->model.first_dense_layers > 0) {
        snprintf(dense, sizeof dense, "%d dense layer%s of width %d, then ",
                 c->model.first_dense_layers, c->model.first_dense_layers == 1 ? "" : "s",
                 c->model.intermediate_size);
    }
    moe_screen_wrapped(s, LABEL, "model",
                       "%s%d layer%s of %d routed%s experts, hidden size %d, expert width %d, %s%s",
                       dense, moe_config_moe_layers(c), moe_config_moe_layers(c) == 1 ? "" : "s",
                       c->model.num_experts, shared, c->model.hidden_size,
                       c->model.moe_intermediate_size,
                       moe_config_enum_name(MOE_KEY(model, expert_type), c->model.expert_type),
                       c->model.compute == MOE_COMPUTE_BF16 ? " in bf16" : "");
}

/* What stands in front of every layer, and what a decoder would remember of a token. */
static void print_attention(const moe_screen *s, const moe_config *c) {
    const moe_model_config *m = &c->model;
    char widths[96], cache[256];
    if (m->attention == MOE_ATTENTION_NONE) {
        return;
    }
    if (m->attention == MOE_ATTENTION_MLA) {
        snprintf(widths, sizeof widths, "%d + %d, c_KV of %d, queries from %d", m->head_dim,
                 m->rope_dim, m->kv_lora_rank, m->q_lora_rank ? m->q_lora_rank : m->hidden_size);
    } else {
        snprintf(widths, sizeof widths, "%d (%d of them rotary), %d of keys and values",
                 m->head_dim, m->rope_dim, m->num_kv_heads ? m->num_kv_heads : m->num_heads);
    }
    moe_kv_cache_sentence(c, cache, sizeof cache);
    moe_screen_wrapped(s, LABEL, "attention", "%s: %d heads of %s",
                       moe_config_enum_name(MOE_KEY(model, attention), (int)m->attention),
                       m->num_heads, widths);
    moe_screen_wrapped(s, LABEL, "", "%s", cache);
}

/* Writes what chance does to the gate in training. */
static void print_noise(const moe_config *c, char *text, size_t size) {
    bool learned = c->router.noise_form == MOE_NOISE_SOFTPLUS;
    int at = 0;
    text[0] = 0;
    if (c->run.mode != MOE_MODE_TRAIN) {
        return;
    }
    if (learned || c->router.noise > 0) {
        at = snprintf(text, size, learned ? "; noise of learned scale + %g" : "; noise %g",
                      c->router.noise);
    }
    if (c->router.jitter > 0) {
        snprintf(text + at, size - (size_t)at, "; jitter %g of what %s read%s", c->router.jitter,
                 c->router.jitter_experts ? "gate and experts" : "the gate",
                 c->router.jitter_experts ? "" : "s");
    }
}

/* Writes how experts are chosen: "softmax, top 6 of 128", "softmax, top-p 0.8 (at most 8 of 8)",
 * "expert choice: ...", "as recorded, 6 of 128". */
static void print_method(const moe_config *c, char *text, size_t size) {
    const char *score = moe_config_enum_name(MOE_KEY(router, score_func), c->router.score_func);
    int k = c->router.top_k, n = c->model.num_experts;
    if (moe_config_recorded(c)) {
        snprintf(text, size, "as recorded, %d of %d", k, n);
        return;
    }
    switch (c->router.method) {
    case MOE_METHOD_TOPK:
        snprintf(text, size, "%s, top %d of %d", score, k, n);
        break;
    case MOE_METHOD_TOP_P:
        snprintf(text, size, "%s, top-p %g, temperature %g, at most %d of %d", score,
                 c->router.top_p, c->router.temperature, k, n);
        break;
    case MOE_METHOD_EXPERT_CHOICE:
        snprintf(text, size, "%s, experts choose tokens (%d each token on average, of %d)", score,
                 k, n);
        break;
    default:
        snprintf(text, size, "method %s, %s, %d of %d",
                 moe_config_enum_name(MOE_KEY(router, method), c->router.method), score, k, n);
    }
}

static void print_router(const moe_screen *s, const moe_config *c) {
    char limit[160] = "no group limit", preset[MOE_NAME_MAX + 16] = "", noise[128], method[160];
    print_method(c, method, sizeof method);
    if (c->router.group_limit != MOE_GROUP_NONE) {
        snprintf(limit, sizeof limit, "%sat most %d of %d %s (%s)",
                 moe_config_recorded(c) ? "which has to keep to the limit of " : "",
                 c->router.topk_group, c->router.num_groups,
                 moe_config_groups_are_devices(c) ? "devices" : "groups",
                 moe_config_enum_name(MOE_KEY(router, group_limit), c->router.group_limit));
    } else if (moe_config_recorded(c)) {
        limit[0] = '\0';
    }
    print_noise(c, noise, sizeof noise);
    if (c->router.preset[0]) {
        snprintf(preset, sizeof preset, "; preset %s", c->router.preset);
    }
    moe_screen_wrapped(s, LABEL, "router", "%s%s%s%s%s", method, limit[0] ? ", " : "", limit, noise,
                       preset);
}

/* Writes which form alpha_expert trains, where it is not DeepSeek's. */
static void print_form(const moe_config *c, char *text, size_t size) {
    text[0] = 0;
    if (c->balance.aux_form == MOE_AUX_DEEPSEEK || c->balance.alpha_expert == 0) {
        return;
    }
    snprintf(text, size, " (%s%s)",
             moe_config_enum_name(MOE_KEY(balance, aux_form), c->balance.aux_form),
             c->balance.aux_layers == MOE_LAYERS_ALL && moe_config_moe_layers(c) > 1
                 ? ", of all layers together"
                 : "");
}

static void print_balance(const moe_screen *s, const moe_config *c) {
    char form[64];
    print_form(c, form, sizeof form);
    moe_screen_wrapped(
        s, LABEL, "balance", "alpha: expert %g%s, device %g, communication %g, z %g; scope %s",
        c->balance.alpha_expert, form, c->balance.alpha_device, c->balance.alpha_comm,
        c->balance.z_loss, moe_config_enum_name(MOE_KEY(balance, scope), c->balance.scope));
}

/* The name of a payload; moesim-f64 sends doubles under the name fp32. */
static const char *payload_name(enum moe_key_id key, enum moe_payload payload) {
    bool whole = payload == MOE_PAYLOAD_FP32 && sizeof(real) == sizeof(double);
    return whole ? "fp64" : moe_config_enum_name(key, (int)payload);
}

/* What is said of fp8: its scales, and a last group that is shorter than the others. */
static void write_scales(const moe_config *c, char *text, size_t size) {
    int rest = c->model.hidden_size % MOE_FP8_GROUP;
    if (c->exchange.payload != MOE_PAYLOAD_FP8) {
        *text = '\0';
    } else if (rest == 0) {
        snprintf(text, size, " (%s scale per %d values)",
                 moe_config_enum_name(MOE_KEY(exchange, fp8_scale), (int)c->exchange.fp8_scale),
                 MOE_FP8_GROUP);
    } else {
        snprintf(text, size, " (%s scale per %d values, the last of %d)",
                 moe_config_enum_name(MOE_KEY(exchange, fp8_scale), (int)c->exchange.fp8_scale),
                 MOE_FP8_GROUP, rest);
    }
}

/* Said where another transport than MPI_Alltoallv was asked for. */
static const char *transport_used(const moe_config *c, const moe_topology *t, int ranks) {
    const moe_reach reach = moe_topology_reach(t, ranks);
    if (c->exchange.transport == MOE_TRANSPORT_ALLTOALLV) {
        return "";
    }
    return !reach.inside && !reach.between ? ", nothing travels: one rank"
           : c->no_room_to_share
               ? ", by MPI_Alltoallv: a folder for shared memory (/dev/shm) has not "
                 "twice the room that is needed"
           : !reach.inside ? ", by MPI_Alltoallv: no host has two ranks"
           : reach.between ? ", through shared memory inside a host, by MPI_Alltoallv between hosts"
                           : ", through shared memory";
}

static void print_exchange(const moe_screen *s,
                           const moe_config *c,
                           const moe_topology *t,
                           int ranks) {
    static const char *const rows[] = {
        [MOE_EXCHANGE_SELECTION] = ": one row per token and expert",
        [MOE_EXCHANGE_TOKEN] = ": one row per token and device",
        [MOE_EXCHANGE_TWO_LEVEL] = ": one row per token and node, then per device inside it"};
    const bool parts = c->exchange.mode == MOE_EXCHANGE_TWO_LEVEL && !c->exchange.node_sum;
    char scales[64], back[32] = "";
    write_scales(c, scales, sizeof scales);
    if (c->exchange.combine_payload != c->exchange.payload) {
        snprintf(back, sizeof back, ", back %s",
                 payload_name(MOE_KEY(exchange, combine_payload), c->exchange.combine_payload));
    }
    moe_screen_wrapped(s, LABEL, "exchange", "mode %s%s%s, payload %s%s%s%s",
                       moe_config_enum_name(MOE_KEY(exchange, mode), c->exchange.mode),
                       rows[c->exchange.mode], parts ? ", back per device" : "",
                       payload_name(MOE_KEY(exchange, payload), c->exchange.payload), scales, back,
                       transport_used(c, t, ranks));
}

/* What is continued, and how. */
static void print_generation(const moe_screen *s, const moe_config *c) {
    char how[64] = "the most probable byte";
    const int n = c->generate.sequences_per_device;
    if (c->generate.temperature > 0) {
        snprintf(how, sizeof how, "drawn at temperature %g", c->generate.temperature);
    }
    moe_screen_wrapped(s, LABEL, "generate",
                       "%s new bytes of each sequence, %s; %d sequence%s on "
                       "each device, a cache for %s tokens",
                       moe_format_count(c->generate.max_new_tokens).s, how, n, n == 1 ? "" : "s",
                       moe_format_count(c->data.sequence_length).s);
}

static void print_data(const moe_screen *s, const moe_config *c) {
    if (moe_config_generates(c)) {
        print_generation(s, c);
        return;
    }
    const char *source = moe_config_enum_name(MOE_KEY(data, source), c->data.source);
    bool made = c->data.source == MOE_SOURCE_SYNTHETIC || c->data.source == MOE_SOURCE_TEXT;
    if (!made) {
        moe_screen_wrapped(
            s, LABEL, "data", "%s from %s%s%s%s%s", source, c->data.path,
            !c->data.mask[0]                         ? ""
            : c->data.padding == MOE_PADDING_COUNTED ? "; the losses leave out what is 0 in "
                                                     : "; nothing is computed for what is 0 in ",
            c->data.mask, c->data.boundaries[0] ? "; sequences as in " : "", c->data.boundaries);
    } else {
        bool bounded = c->data.boundaries[0] != '\0', whole = c->data.sequence_length == 0;
        moe_screen_wrapped(s, LABEL, "data", "%s%s%s, %s tokens per device, %s%s", source,
                           c->data.source == MOE_SOURCE_TEXT ? " from " : "",
                           c->data.source == MOE_SOURCE_TEXT ? c->data.path : "",
                           moe_format_count(c->data.tokens_per_device).s,
                           bounded ? "sequences as in "
                           : whole ? "all in one sequence"
                                   : "sequences of ",
                           bounded ? c->data.boundaries
                           : whole ? ""
                                   : moe_format_count(c->data.sequence_length).s);
    }
}

static void print_cluster(const moe_screen *s, const moe_config *c, int ranks) {
    int32_t devices = c->cluster.devices,
            per_node = c->cluster.devices_per_node > 0 ? c->cluster.devices_per_node : devices;
    int32_t nodes = (devices + per_node - 1) / per_node;
    moe_screen_wrapped(
        s, LABEL, "devices",
        "%d on %d node%s of %d; %d device%s on each of %d rank%s, %d expert%s on each device",
        devices, nodes, nodes == 1 ? "" : "s", per_node, devices / ranks,
        devices == ranks ? "" : "s", ranks, ranks == 1 ? "" : "s", moe_config_slots_per_device(c),
        moe_config_slots_per_device(c) == 1 ? "" : "s");
}

/* --- where it runs --- */

static bool same_host(const moe_topology *a, const moe_topology *b) {
    return !strcmp(a->host, b->host);
}

static bool same_place(const moe_topology *a, const moe_topology *b) {
    return same_host(a, b) && a->package == b->package && a->numa == b->numa &&
           a->core == b->core && a->bound_cores == b->bound_cores && a->threads == b->threads;
}

/* The first rank after `from` that differs from it. */
static int run_end(const moe_topology *t,
                   int from,
                   int ranks,
                   bool (*same)(const moe_topology *, const moe_topology *)) {
    int end = from + 1;
    while (end < ranks && same(&t[from], &t[end])) {
        end++;
    }
    return end;
}

static int count_runs(const moe_topology *t, int begin, int end) {
    int runs = 0;
    for (int q = begin; q < end; q = run_end(t, q, end, same_place)) {
        runs++;
    }
    return runs;
}

static moe_formatted rank_range(int begin, int end) {
    moe_formatted text;
    if (end - begin == 1) {
        snprintf(text.s, sizeof text.s, "rank %d", begin);
    } else {
        snprintf(text.s, sizeof text.s, "ranks %d-%d", begin, end - 1);
    }
    return text;
}

/* Prints "package 0, NUMA 1, core 3". What is unknown or not one place is left out. */
static void print_place(const moe_screen *s, const moe_topology *t, int begin, int end) {
    char where[96] = "";
    int length = 0;
    if (t->package >= 0) {
        length +=
            snprintf(where + length, sizeof where - (size_t)length, ", package %d", t->package);
    }
    if (t->numa >= 0) {
        length += snprintf(where + length, sizeof where - (size_t)length, ", NUMA %d", t->numa);
    }
    if (t->core >= 0) {
        snprintf(where + length, sizeof where - (size_t)length, ", core %d", t->core);
    } else if (t->bound_cores > 0) {
        snprintf(where + length, sizeof where - (size_t)length, ", any of %d cores",
                 t->bound_cores);
    }
    moe_screen_wrapped(s, LABEL, "", "%s: %d thread%s%s%s", rank_range(begin, end).s, t->threads,
                       t->threads == 1 ? "" : "s", end - begin > 1 ? " each" : "", where);
}

static void print_host(const moe_screen *s,
                       const moe_topology *t,
                       int begin,
                       int end,
                       const char *label) {
    const moe_topology *h = &t[begin];
    moe_screen_wrapped(s, LABEL, label, "%s: %s, %d core%s, %s of memory%s%s", h->host,
                       rank_range(begin, end).s, h->host_cores, h->host_cores == 1 ? "" : "s",
                       moe_format_bytes(h->memory_bytes).s, h->processor[0] ? "; " : "",
                       h->processor);
    if (count_runs(t, begin, end) > MOST_PLACES) {
        char threads[48];
        snprintf(threads, sizeof threads,
                 t[begin].threads == t[end - 1].threads ? "%d" : "%d to %d", t[end - 1].threads,
                 t[begin].threads);
        moe_screen_wrapped(s, LABEL, "",
                           "%s: threads on each: %s; where each one runs: summary.json",
                           rank_range(begin, end).s, threads);
        return;
    }
    for (int q = begin; q < end; q = run_end(t, q, end, same_place)) {
        print_place(s, &t[q], q, run_end(t, q, end, same_place));
    }
}

static void print_hosts(const moe_screen *s, const moe_topology *t, int ranks) {
    int shown = 0, more = 0;
    for (int q = 0; q < ranks; q = run_end(t, q, ranks, same_host)) {
        if (shown < MOST_PLACES) {
            print_host(s, t, q, run_end(t, q, ranks, same_host), shown == 0 ? "machine" : "");
        } else {
            more++;
        }
        shown++;
    }
    if (more > 0) {
        moe_screen_wrapped(s, LABEL, "", "and %d more groups of ranks: placement in summary.json",
                           more);
    }
}

/* Prints "oneDNN 2.6.3 (avx512_core); small products OpenBLAS 0.3.21 (SkylakeX)". */
static void print_gemm(const moe_screen *s, const moe_topology *t) {
    char text[256] = "";
    size_t length = 0;
    for (int i = 0; i < t->num_gemm; i++) {
        const moe_gemm_kernels *k = &t->gemm[i];
        length += (size_t)snprintf(text + length, sizeof text - length, "%s%s%s%s%s%s%s",
                                   i > 0 ? "; small products " : "", k->library,
                                   k->version[0] ? " " : "", k->version, k->kernels[0] ? " (" : "",
                                   k->kernels, k->kernels[0] ? ")" : "");
    }
    if (length > 0) {
        moe_screen_wrapped(s, LABEL, "gemm", "%s", text);
    }
}

/* The memory that is available changes from run to run, so it is shown on a terminal only and not
 * in what is piped. */
static void print_memory(const moe_screen *s,
                         int ranks,
                         int64_t bytes_per_rank,
                         int64_t available) {
    char left[80] = "";
    if (s->terminal) {
        snprintf(left, sizeof left, "; what is available is unknown");
    }
    if (s->terminal && available >= 0) {
        snprintf(left, sizeof left, "; %s available on this host",
                 moe_format_glued(moe_format_bytes(available)).s);
    }
    moe_screen_wrapped(s, LABEL, "memory", "about %s on each rank, %s in all%s",
                       moe_format_glued(moe_format_bytes(bytes_per_rank)).s,
                       moe_format_glued(moe_format_bytes(bytes_per_rank * ranks)).s, left);
}

/* Warns once for each cause: "capacity.drop, capacity.capacity_factor have no effect:
 * capacity.policy = none". */
static void warn_idle(const moe_screen *s, const moe_config *c) {
    enum { MOST = 32 };
    moe_idle idle[MOST];
    int count = moe_idle_find(c, idle, MOST);
    char value[MOE_VALUE_TEXT_MAX];
    for (int begin = 0, end; begin < count; begin = end) {
        char text[MOE_VALUE_TEXT_MAX + 128 * MOST] = "";
        size_t length = 0;
        for (end = begin; end < count && idle[end].because == idle[begin].because; end++) {
            length += (size_t)snprintf(text + length, sizeof text - length, "%s%s",
                                       end > begin ? ", " : "", moe_keys[idle[end].key].full);
        }
        length += (size_t)snprintf(text + length, sizeof text - length, " ha%s no effect",
                                   end - begin == 1 ? "s" : "ve");
        enum moe_key_id because = idle[begin].because;
        moe_value_format(c, because, value);
        snprintf(text + length, sizeof text - length, value[0] ? ": %s = %s" : " without %s%s",
                 moe_keys[because].full, value);
        moe_terminal_warn(s, text);
    }
}

/* Whoever set OPENBLAS_CORETYPE has chosen the kernels and is not warned of them. */
static void warn_slow_gemm(const moe_screen *s, const moe_topology *t, int ranks) {
    const char *chosen = getenv("OPENBLAS_CORETYPE");
    for (int q = 0; q < ranks && !(chosen && chosen[0]); q++) {
        for (int i = 0; i < t[q].num_gemm; i++) {
            const moe_gemm_kernels *k = &t[q].gemm[i];
            if (k->slow) {
                char text[256];
                snprintf(text, sizeof text,
                         "%s uses its %s kernels on %s, whose processor can do more: set "
                         "OPENBLAS_CORETYPE=%s, or source scripts/env",
                         k->library, k->kernels, t[q].host, moe_gemm_core_type());
                moe_terminal_warn(s, text);
                return;
            }
        }
    }
}

/* Measured on this rank's core: instructions for bf16 that take longer than those for fp32 exist.
 */
static void warn_slow_bf16(const moe_screen *s, const moe_config *c) {
    char text[160];
    if (c->model.compute != MOE_COMPUTE_BF16) {
        return;
    }
    const double speed = moe_gemm_bf16_speed();
    if (speed < 0.95) {
        snprintf(
            text, sizeof text,
            "model.compute = bf16 is slower here: a product takes %.1f times as long as in fp32",
            1 / speed);
        moe_terminal_warn(s, text);
    }
}

/* A node, of devices that would share fast links, whose devices are on two hosts. */
static void warn_spread_node(const moe_screen *s,
                             const moe_config *c,
                             const moe_topology *t,
                             int ranks) {
    const int32_t per_rank = c->cluster.devices / ranks, per_node = c->cluster.devices_per_node;
    char text[320];
    for (int32_t first = 0; per_node > 0 && first + per_node <= c->cluster.devices;
         first += per_node) {
        const moe_topology *a = &t[first / per_rank], *b = &t[(first + per_node - 1) / per_rank];
        if (same_host(a, b)) {
            continue;
        }
        snprintf(text, sizeof text,
                 "cluster.devices_per_node = %d puts devices of %s and of %s on one node: times "
                 "inside a node are those of the network",
                 per_node, a->host, b->host);
        moe_terminal_warn(s, text);
        return;
    }
}

static void print_warnings(const moe_screen *s,
                           const moe_config *c,
                           const moe_topology *t,
                           int ranks) {
    char text[256];
    for (int begin = 0, end; begin < ranks; begin = end) {
        end = run_end(t, begin, ranks, same_host);
        if (!t[begin].oversubscribed) {
            continue;
        }
        bool one = t[begin].threads == 1;
        snprintf(text, sizeof text,
                 "%d rank%s x %d thread%s share %d core%s on %s: times are not those of %d devices",
                 end - begin, end - begin == 1 ? "" : "s", t[begin].threads, one ? "" : "s",
                 t[begin].host_cores, t[begin].host_cores == 1 ? "" : "s", t[begin].host,
                 c->cluster.devices);
        moe_terminal_warn(s, text);
        break;
    }
    warn_spread_node(s, c, t, ranks);
    warn_slow_gemm(s, t, ranks);
    warn_slow_bf16(s, c);
    warn_idle(s, c);
    if (t[0].synthetic) {
        moe_terminal_warn(
            s, "hwloc describes another machine (HWLOC_SYNTHETIC or HWLOC_XMLFILE): nothing is "
               "bound to it");
    }
}

void moe_terminal_header(const moe_screen *s,
                         const moe_config *c,
                         const moe_topology *topologies,
                         int ranks,
                         int64_t memory_bytes_per_rank,
                         int64_t memory_available) {
    if (s->quiet) {
        return;
    }
    fprintf(s->out, "%smoesim %s%s  %s\n", moe_screen_paint(s, MOE_BOLD), MOESIM_VERSION,
            moe_screen_paint(s, MOE_PLAIN), c->name);
    print_model(s, c);
    print_attention(s, c);
    print_router(s, c);
    print_balance(s, c);
    print_exchange(s, c, topologies, ranks);
    print_data(s, c);
    print_cluster(s, c, ranks);
    print_hosts(s, topologies, ranks);
    print_gemm(s, &topologies[0]);
    print_memory(s, ranks, memory_bytes_per_rank, memory_available);
    print_warnings(s, c, topologies, ranks);
    fflush(s->out);
}
