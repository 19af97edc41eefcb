/* alloc.h: the working precision and aligned memory.
 *
 * `real` is float in moesim and double in moesim-f64 (compiled with MOE_REAL_DOUBLE from the same
 * sources). Tensors are plain row-major arrays; shapes stand in comments with these letters: T
 * tokens of this rank   H hidden_size   N routed experts   F expert width   K top_k   D devices   L
 * layers   R rows */
#ifndef MOESIM_BASE_ALLOC_H
#define MOESIM_BASE_ALLOC_H

#include <stddef.h>
#include <stdint.h>

#ifdef MOE_REAL_DOUBLE
typedef double real;
#else
typedef float real;
#endif

/* Local. count*size bytes, 64-byte aligned, not cleared; NULL only when count*size == 0. Ends all
 * ranks with one sentence when memory is short or the product overflows (sizes a user can choose
 * are refused earlier, see memory.h). Free with moe_free. */
void *moe_alloc(int64_t count, size_t size, const char *what);
/* Local. The same, cleared. */
void *moe_alloc_zero(int64_t count, size_t size, const char *what);
/* Local. Makes *pointer hold at least `count` elements; contents are lost when it grows. *capacity
 * is in elements, grows by 1/4 at least. */
void moe_reserve(
    void *pointer_to_pointer, int64_t *capacity, int64_t count, size_t size, const char *what);
/* Local. The same for a count that depends on who chose whom, and so on the step: takes a quarter
 * more than is asked for (memory.h counts on it), so that an ordinary change of the load allocates
 * nothing. */
void moe_reserve_varying(
    void *pointer_to_pointer, int64_t *capacity, int64_t count, size_t size, const char *what);
void moe_free(void *pointer);

/* Local. Most bytes ever allocated by the functions above at one time, those allocated now, and how
 * often memory was allocated. */
int64_t moe_alloc_peak_bytes(void);
int64_t moe_alloc_live_bytes(void);
int64_t moe_alloc_count(void);
/* Local. count*size of a block of moe_alloc. */
int64_t moe_alloc_bytes(const void *pointer);

#endif
