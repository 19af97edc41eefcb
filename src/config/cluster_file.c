/* cluster_file.c: from the bytes of a cluster file to the keys of [cluster]. */
#include "config/cluster_file.h"

#include "config/config.h"
#include "config/table.h"
#include "config/value.h"

static bool is_of_cluster(enum moe_key_id k) {
    return moe_table_same_section(k, MOE_KEY(cluster, file));
}

static bool named_by_set(const moe_config *c) {
    return c->place[MOE_KEY(cluster, file)] == MOE_PLACE_SET;
}

/* Whether the value that the configuration has stays. */
static bool stays(const moe_config *c, enum moe_key_id k) {
    return named_by_set(c) ? c->place[k] == MOE_PLACE_SET : c->given[k] != 0;
}

bool moe_cluster_file_is_needed(const moe_config *c) {
    bool open = named_by_set(c);
    for (enum moe_key_id k = 0; k < MOE_NUM_KEYS; k++) {
        open = open || (is_of_cluster(k) && !c->given[k]);
    }
    return c->cluster.file[0] != '\0' && open;
}

static int check_keys(const moe_config *file, moe_status *st) {
    const enum moe_key_id needed[] = {MOE_KEY(cluster, intra_gbps), MOE_KEY(cluster, inter_gbps),
                                      MOE_KEY(cluster, device_tflops),
                                      MOE_KEY(cluster, memory_gbps)};
    for (enum moe_key_id k = 0; k < MOE_NUM_KEYS; k++) {
        if (file->given[k] && (!is_of_cluster(k) || k == MOE_KEY(cluster, file))) {
            return moe_fail(st, MOE_USER,
                            "%s:%d: %s: a cluster file has keys of [cluster] alone, without file",
                            file->file, file->place[k], moe_keys[k].full);
        }
    }
    for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++) {
        if (!file->given[needed[i]]) {
            return moe_fail(st, MOE_USER,
                            "%s: %s is missing: a prediction needs intra_gbps, inter_gbps, "
                            "device_tflops and memory_gbps",
                            file->file, moe_keys[needed[i]].full);
        }
    }
    return MOE_OK;
}

int moe_cluster_file_apply(moe_config *c, const char *bytes, int64_t length, moe_status *st) {
    moe_config file;
    char value[MOE_VALUE_TEXT_MAX];
    moe_config_defaults(&file);
    if (moe_config_parse(&file, bytes, length, c->cluster.file, st) != MOE_OK ||
        check_keys(&file, st) != MOE_OK) {
        return st->code;
    }
    for (enum moe_key_id k = 0; k < MOE_NUM_KEYS && st->code == MOE_OK; k++) {
        if (file.given[k] && !stays(c, k)) {
            moe_value_format(&file, k, value);
            moe_value_set(c, k, value, c->cluster.file, st);
            c->place[k] = MOE_PLACE_CLUSTER;
        }
    }
    return st->code;
}
