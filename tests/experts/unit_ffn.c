/* unit_ffn.c: the table of expert types has a row for every value of model.expert_type, under its
 * name, and the matrices that moe_ffn_init makes.
 *
 * ctest: f64 */
#include <string.h>

#include "check.h"
#include "config/config.h"
#include "config/value.h"
#include "experts/ffn.h"

static void test_type(enum moe_expert_type type) {
    const moe_ffn_type *row = moe_ffn_type_of(type);
    const int32_t id[2] = {0, 1};
    CHECK_MSG(strcmp(row->name, moe_config_enum_name(MOE_KEY(model, expert_type), (int)type)) == 0,
              "%s", row->name);
    moe_ffn f;
    moe_ffn_init(&f, &(moe_ffn_shape){
                         .type = type, .count = 2, .hidden = 3, .width = 4, .rank = 1, .id = id});
    CHECK_EQ((f.w1 != NULL) + (f.w2 != NULL) + (f.w3 != NULL), row->matrices);
    CHECK_EQ((f.a1 != NULL) + (f.a2 != NULL) + (f.a3 != NULL), row->adapters ? 3 : 0);
    CHECK_EQ((f.b1 != NULL) + (f.b2 != NULL) + (f.b3 != NULL), row->adapters ? 3 : 0);
    CHECK((row->forward != NULL) == (row->matrices > 0));
    CHECK((row->backward != NULL) == (row->matrices > 0));
    moe_ffn_free(&f);
}

int main(void) {
    for (int type = MOE_EXPERT_SWIGLU; type <= MOE_EXPERT_IDENTITY; type++) {
        RUN(test_type, type);
    }
    CHECK_EQ(moe_alloc_live_bytes(), 0);
    return check_verdict();
}
