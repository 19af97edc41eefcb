/* alloc.h: the working precision, and aligned memory.
 *
 * `real` is float in moesim and double in moesim-f64, which is compiled with MOE_REAL_DOUBLE from
 * the same sources. Tensors are plain row-major arrays. Shapes stand in comments with these
 * letters:
 *
 *     T tokens of this rank    H hidden_size    N routed experts    F width of an expert
 *     K top_k                  D devices        L layers            R rows */
#ifndef MOESIM_BASE_ALLOC_H
#define MOESIM_BASE_ALLOC_H

#include <stddef.h>
#include <stdint.h>

#ifdef MOE_REAL_DOUBLE
typedef double real;
#else
typedef float real;
#endif

/* Local. Allocates count * size bytes, aligned to 64 bytes and not cleared; returns NULL only when
 * that is 0. Ends all ranks with one sentence when memory is short or the product overflows; sizes
 * that a user can choose are refused earlier (predict/memory.h). The caller frees with moe_free. */
void *moe_alloc(int64_t count, size_t size, const char *what);
/* Local. The same, cleared. */
void *moe_alloc_zero(int64_t count, size_t size, const char *what);
/* Local. Makes the array, whose pointer is given by its address, hold at least `count` elements.
 * Its contents are lost when it grows. *capacity, in elements, grows by a quarter at least. */
void moe_reserve(void *pointer_to_pointer,
                 int64_t *capacity,
                 int64_t count,
                 size_t size,
                 const char *what);
/* Local. The same for a count that depends on who chose whom, and so changes from step to step: an
 * array that has to grow gets a quarter more than is asked for (predict/memory.h counts on it), so
 * that an ordinary change of the load allocates nothing. */
void moe_reserve_varying(void *pointer_to_pointer,
                         int64_t *capacity,
                         int64_t count,
                         size_t size,
                         const char *what);
void moe_free(void *pointer);

/* Local. Gives back to the system what was freed and is kept to be allocated again, as far as the C
 * library can. */
void moe_alloc_trim(void);

/* Local. Counts memory that somebody else has allocated (bytes > 0) or freed (bytes < 0) among the
 * following. */
void moe_alloc_note(int64_t bytes);

/* Local. The most bytes that the functions above ever held at one time, the bytes that they hold
 * now, and how often they have allocated. */
int64_t moe_alloc_peak_bytes(void);
int64_t moe_alloc_live_bytes(void);
int64_t moe_alloc_count(void);
/* Local. The bytes of an allocation: count * size. */
int64_t moe_alloc_bytes(const void *pointer);

#endif
