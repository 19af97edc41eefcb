/* bottleneck.c: what a predicted step spends most of its time on, in words. */
#include <stddef.h>
#include <stdio.h>

#include "predict/predictor.h"

/* The device with the most of one load, and how many times the mean that is. */
typedef struct busiest {
    int32_t device;
    double most, times;
} busiest;

static busiest busiest_of(const moe_predictor *p, size_t member) {
    const int32_t devices = p->cluster.devices;
    busiest b = {0};
    double sum = 0;
    for (int32_t d = 0; d < devices; d++) {
        const double x = *(const double *)((const char *)&p->total[d] + member);
        sum += x;
        if (x > b.most) {
            b.most = x;
            b.device = d;
        }
    }
    b.times = sum > 0 ? b.most * devices / sum : 1;
    return b;
}

/* The link that takes the longest in an exchange. A combine sends what the dispatch received. */
static void describe_exchange(const moe_predictor *p,
                              enum moe_predicted_phase phase,
                              char *text,
                              size_t n) {
    const bool back = phase == MOE_PREDICTED_COMBINE;
    const struct {
        size_t member;
        double rate;
        const char *does, *where;
    } links[] = {
        {offsetof(moe_device_load, rows.inter_sent), p->cluster.inter_rate,
         back ? "receives" : "sends", " across nodes"},
        {offsetof(moe_device_load, rows.inter_received), p->cluster.inter_rate,
         back ? "sends" : "receives", " across nodes"},
        {offsetof(moe_device_load, rows.intra_sent), p->cluster.intra_rate,
         back ? "receives" : "sends", " inside its node"},
        {offsetof(moe_device_load, rows.intra_received), p->cluster.intra_rate,
         back ? "sends" : "receives", " inside its node"},
    };
    busiest worst = {0};
    int link = 0;
    double longest = 0;
    for (int i = 0; i < 4; i++) {
        const busiest b = busiest_of(p, links[i].member);
        if (b.most / links[i].rate > longest) {
            longest = b.most / links[i].rate;
            worst = b;
            link = i;
        }
    }
    snprintf(text, n, "device %d %s %.1fx the mean%s", worst.device, links[link].does, worst.times,
             links[link].where);
}

/* Why the experts take as long as they do: launching, reading weights, or the busiest device. */
static void describe_experts(const moe_predictor *p,
                             double seconds,
                             double layers,
                             char *text,
                             size_t n) {
    const busiest b = busiest_of(p, offsetof(moe_device_load, selections));
    const double read = p->total[b.device].active * p->weights * p->expert.in_bytes /
                        p->cluster.memory_rate * p->micro_batches * layers / p->num_layers;
    if (layers * p->micro_batches * p->cluster.launch_seconds > 0.8 * seconds) {
        snprintf(text, n, "launching the kernels is most of it, which no balance changes");
    } else if (read > 0.5 * seconds) {
        snprintf(text, n, "reading the weights is most of it, which no balance of tokens changes");
    } else {
        snprintf(text, n, "device %d serves %.1fx the mean of selections", b.device, b.times);
    }
}

void moe_predictor_describe(const moe_predictor *p, double layers, moe_prediction *out) {
    enum moe_predicted_phase longest = MOE_PREDICTED_GATE;
    char why[160] = "work on a device's own tokens";
    for (int i = 0; i < MOE_PREDICTED_STEP; i++) {
        longest = out->seconds[i] > out->seconds[longest] ? (enum moe_predicted_phase)i : longest;
    }
    const double seconds = out->seconds[longest];
    const bool exchange = longest == MOE_PREDICTED_DISPATCH || longest == MOE_PREDICTED_COMBINE;
    if (exchange && p->fixed * layers * p->micro_batches > 0.5 * seconds) {
        snprintf(why, sizeof why, "latency is most of it, which no balance changes");
    } else if (exchange) {
        describe_exchange(p, longest, why, sizeof why);
    } else if (longest == MOE_PREDICTED_EXPERT || longest == MOE_PREDICTED_BACKWARD) {
        describe_experts(p, out->seconds[MOE_PREDICTED_EXPERT], layers, why, sizeof why);
    } else if (longest == MOE_PREDICTED_ALLREDUCE) {
        snprintf(why, sizeof why, "sums over all devices, which no balance changes");
    }
    const double step = out->seconds[MOE_PREDICTED_STEP];
    snprintf(out->bottleneck, sizeof out->bottleneck, "%s is %.0f %% of the step: %s",
             moe_predicted_names[longest], step > 0 ? 100 * seconds / step : 0, why);
}
