/* vector.h: one macro for hot loops. Layer 0 (base).
 * MOE_CLONES compiles a function for several vector widths and picks at load time. The loops
 * contain no fused multiply-add
 * (-ffp-contract=off) and keep the order of their sums, so every clone gives the same bits. */
#ifndef MOESIM_BASE_VECTOR_H
#define MOESIM_BASE_VECTOR_H

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define MOE_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define MOE_CLONES
#endif

#endif
