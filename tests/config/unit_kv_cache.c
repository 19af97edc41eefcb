/* unit_kv_cache.c: the published sizes of the cache (DeepSeek-V2, arXiv 2405.04434, table 1 and
 * appendix D.2; DeepSeek-V3 by its settings), from the presets; and the other kinds by their
 * formulas. */
#include <string.h>

#include "check.h"
#include "config/kv_cache.h"
#include "settings.h"

static moe_kv_cache cache(const char *settings) {
    moe_config c;
    settings_resolve(&c, "", settings, 1);
    return moe_kv_cache_of(&c);
}

static void check_published(void) {
    static const struct {
        const char *settings;
        int kind;
        int64_t elements;
    } published[] = {
        {"router.preset=deepseek_v2_lite model.attention=mla model.num_layers=27", MOE_KV_CACHE_MLA,
         15552},
        {"router.preset=deepseek_v2_lite model.attention=mla model.num_layers=27", MOE_KV_CACHE_MHA,
         110592},
        {"router.preset=deepseek_v2 model.attention=mla model.num_layers=60 "
         "router.num_groups=8 router.topk_group=3",
         MOE_KV_CACHE_MLA, 34560},
        {"router.preset=deepseek_v3 model.attention=mla model.num_layers=61", MOE_KV_CACHE_MLA,
         70272 / MOE_KV_CACHE_BF16},
        {"model.attention=mha model.num_heads=56 model.head_dim=128 model.num_layers=60",
         MOE_KV_CACHE_MHA, 860160},
    };
    for (size_t i = 0; i < sizeof published / sizeof published[0]; i++) {
        const moe_kv_cache k = cache(published[i].settings);
        CHECK_MSG(k.elements[published[i].kind] == published[i].elements, "%s: %lld",
                  published[i].settings, (long long)k.elements[published[i].kind]);
        CHECK_EQ(k.own,
                 strstr(published[i].settings, "=mla") ? MOE_KV_CACHE_MLA : MOE_KV_CACHE_MHA);
    }
    const moe_kv_cache lite =
        cache("router.preset=deepseek_v2_lite model.attention=mla model.num_layers=27");
    CHECK(lite.rank == 512 && lite.rope == 64 && lite.groups == 8);
}

/* 6 heads of 10 in 3 layers. */
static void check_kinds(void) {
    static const char sizes[] = "model.attention=mha model.num_heads=6 model.head_dim=10 "
                                "model.num_layers=3 model.num_kv_heads=";
    static const struct {
        const char *kv_heads;
        int own;
        int32_t groups;
    } kinds[] = {{"0", MOE_KV_CACHE_MHA, 3},
                 {"6", MOE_KV_CACHE_MHA, 3},
                 {"2", MOE_KV_CACHE_GQA, 2},
                 {"1", MOE_KV_CACHE_MQA, 3}};
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        char settings[256];
        snprintf(settings, sizeof settings, "%s%s", sizes, kinds[i].kv_heads);
        const moe_kv_cache k = cache(settings);
        CHECK(k.own == (enum moe_kv_cache_kind)kinds[i].own && k.groups == kinds[i].groups);
        CHECK_EQ(k.elements[MOE_KV_CACHE_MHA], 2 * 6 * 10 * 3);
        CHECK_EQ(k.elements[MOE_KV_CACHE_GQA], 2 * kinds[i].groups * 10 * 3);
        CHECK_EQ(k.elements[MOE_KV_CACHE_MQA], 2 * 10 * 3);
        CHECK_EQ(k.elements[MOE_KV_CACHE_MLA], (40 + 5) * 3);
    }
}

static void check_sentence(void) {
    moe_config c;
    char text[256];
    settings_resolve(&c, "",
                     "router.preset=deepseek_v2_lite model.attention=mla model.num_layers=27", 1);
    moe_kv_cache_sentence(&c, text, sizeof text);
    CHECK_MSG(strstr(text, "mla 15552 elements, 31104 bytes in bf16") &&
                  strstr(text, "mha: 110592"),
              "%s", text);
}

int main(void) {
    RUN(check_published);
    RUN(check_kinds);
    RUN(check_sentence);
    return check_verdict();
}
