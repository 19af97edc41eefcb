/* matrix_size.h: up to how many devices the matrix of rows is written as an array. */
#ifndef MOESIM_MEASURE_MATRIX_SIZE_H
#define MOESIM_MEASURE_MATRIX_SIZE_H

/* The most devices, 32 MiB for each layer; of more, the pairs that occur are listed. */
enum { MOE_MATRIX_DEVICES = 2048 };

#endif
