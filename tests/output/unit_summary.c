/* unit_summary.c: the indented text of a summary means the same as the values it was made from. */
#include <jansson.h>
#include <string.h>

#include "check.h"
#include "output/json.h"

static void check_round_trip(json_t *value) {
    char *text = moe_json_indented(value);
    json_error_t error;
    json_t *back = json_loads(text, JSON_DECODE_ANY, &error);
    CHECK_MSG(back != NULL && json_equal(value, back), "%s", text);
    json_decref(back);
    json_decref(value);
    free(text);
}

int main(void) {
    char longer[400];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    json_t *numbers = json_array();
    for (int i = 0; i < 300; i++) {
        json_array_append_new(numbers, json_real(i / 7.0));
    }
    RUN(check_round_trip, json_pack("{s:s, s:{s:s, s:i}, s:[s, {s:s}]}", "a", longer, "b", "c",
                                    longer, "d", 1, "e", longer, "f", longer));
    RUN(check_round_trip, json_pack("{s:o, s:{}, s:[], s:n, s:b}", "numbers", numbers, "empty",
                                    "none", "null", "yes", 1));
    return check_verdict();
}
