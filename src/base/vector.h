/* vector.h: MOE_CLONES in front of a function compiles it for several vector widths, of which the
 * right one is picked when the program starts. Such functions hold loops without fused multiply-add
 * (-ffp-contract=off) whose sums have a fixed order, so that every clone gives the same bits. */
#ifndef MOESIM_BASE_VECTOR_H
#define MOESIM_BASE_VECTOR_H

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define MOE_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define MOE_CLONES
#endif

#endif
