/* vector.h: MOE_CLONES in front of a function compiles it for several vector widths, of which the
 * right one is picked when the program starts. Such functions hold loops without fused multiply-add
 * (-ffp-contract=off) whose sums have a fixed order, so that every clone gives the same bits.
 * MOE_PART stands in front of a function that becomes part of each clone that calls it. */
#ifndef MOESIM_BASE_VECTOR_H
#define MOESIM_BASE_VECTOR_H

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define MOE_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define MOE_CLONES
#endif

#if defined(__GNUC__)
#define MOE_PART static inline __attribute__((always_inline))
#else
#define MOE_PART static inline
#endif

#endif
