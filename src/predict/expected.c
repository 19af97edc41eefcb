/* expected.c: means over choices that are drawn at random. */
#include "predict/expected.h"

#include <math.h>

#include "capacity/capacity.h"

double moe_expected_choices(const moe_config *c, int64_t device_tokens) {
    const double n = c->model.num_experts, t = (double)device_tokens, k = c->router.top_k;
    if (moe_config_recorded(c) || c->router.method != MOE_METHOD_EXPERT_CHOICE || t == 0) {
        return k;
    }
    double each = floor((2 * t * k + n) / (2 * n));
    each = each < 1 ? 1 : each > t ? t : each;
    return each * n / t;
}

double moe_expected_reach(const moe_config *c, double k) {
    const double n = c->model.num_experts, devices = c->cluster.devices, own = n / devices;
    double missed = 1; /* probability that no expert of a device is chosen */
    if (k != floor(k) || c->router.method == MOE_METHOD_EXPERT_CHOICE) {
        missed = pow(k < n ? 1 - k / n : 0, own);
    } else {
        for (double i = 0; i < k && missed > 0; i++) {
            missed *= n - own - i > 0 ? (n - own - i) / (n - i) : 0;
        }
    }
    const double reach = devices * (1 - missed);
    return c->comm_limit > 0 && reach > c->comm_limit ? c->comm_limit : reach;
}

/* E[min(X, most)] / mean for X with Poisson's distribution; a normal one where the mean is large.
 */
static double kept_of_poisson(double mean, double most) {
    const double pi = 3.14159265358979323846;
    if (mean <= 0 || most >= mean + 12 * sqrt(mean) + 12) {
        return 1;
    }
    if (mean > 64) {
        const double deviation = sqrt(mean), z = (most - mean) / deviation;
        const double beyond =
            deviation * exp(-z * z / 2) / sqrt(2 * pi) - (most - mean) * erfc(z / sqrt(2)) / 2;
        return 1 - beyond / mean;
    }
    double probability = exp(-mean), sum = 0, below = 0;
    for (double x = 0; x < most; x++) {
        sum += x * probability;
        below += probability;
        probability *= mean / (x + 1);
    }
    return (sum + most * (1 - below)) / mean;
}

double moe_expected_kept(const moe_config *c, int64_t tokens, double k) {
    moe_capacity capacity;
    moe_capacity_init(&capacity, &c->capacity, c->model.num_experts, c->cluster.devices,
                      c->router.top_k, 0);
    int64_t pool = tokens, length = c->data.sequence_length;
    if (capacity.policy == MOE_CAPACITY_NONE || tokens == 0) {
        return 1;
    }
    if (capacity.policy == MOE_CAPACITY_SEQUENCE) {
        pool = length > 0 && length < tokens ? length : tokens;
    } else if (capacity.scope == MOE_CAPACITY_PER_DEVICE) {
        pool = tokens / c->cluster.devices;
    }
    const double selections = (double)pool * k, mean = selections / moe_capacity_targets(&capacity);
    const double most = (double)moe_capacity_pairs(&capacity, pool, (int64_t)selections);
    double kept = capacity.overflow == MOE_OVERFLOW_NEXT_CHOICE ? fmin(1, most / mean)
                                                                : kept_of_poisson(mean, most);
    return capacity.exempt_sequences + (1 - capacity.exempt_sequences) * kept;
}
