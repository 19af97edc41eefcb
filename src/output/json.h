/* json.h: what the writers of JSON share: objects that keep the order of their keys, numbers with
 * 17 significant digits, and null where a number is not defined. */
#ifndef MOESIM_OUTPUT_JSON_H
#define MOESIM_OUTPUT_JSON_H

#include <jansson.h>
#include <stdint.h>

/* Local. Puts a value into an object and takes over the reference to it. */
void moe_json_put(json_t *object, const char *key, json_t *value);

/* Local. A number, or null where it is NaN or infinite. */
json_t *moe_json_number(double value);

/* Local. Lists of n numbers; NaN and infinite ones become null. */
json_t *moe_json_integers(const int64_t *values, int64_t n);
json_t *moe_json_numbers(const double *values, int64_t n);

/* Local. A string. JSON is UTF-8: in a text that is not (a folder that was named in another
 * encoding), question marks replace all bytes beyond ASCII. */
json_t *moe_json_text(const char *value);

/* Local. The text of a value on one line. Owner: the caller, free(). */
char *moe_json_line(const json_t *value);

/* Local. The text of a value with one key of an object a line; arrays of numbers stay on one line.
 * Owner: the caller, free(). */
char *moe_json_indented(const json_t *value);

#endif
