// Column sums of squares in double over the rows that are counted. A thread has one column and every gridDim.y-th row,
// in order; total (gridDim.y, columns) is added up by the caller.
#include "values.cuh"

template <class T>
__device__ void add_squares(const T* inputs, const unsigned char* counted, double* total, int rows, int columns) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    double sum = 0;
    for (int row = blockIdx.y; row < rows; row += gridDim.y) {
        if (!counted[row]) continue;
        const double x = value_of(inputs[(long long)row * columns + column]);
        sum += x * x;
    }
    total[(long long)blockIdx.y * columns + column] = sum;
}

#define SQUARE_SUMS(NAME, T)                                                                                    \
    extern "C" __global__ void square_sums_##NAME(const T* inputs, const unsigned char* counted, double* total, \
                                                  int rows, int columns) {                                      \
        add_squares<T>(inputs, counted, total, rows, columns);                                                  \
    }
SQUARE_SUMS(float32, float)
SQUARE_SUMS(bfloat16, Bfloat16)
SQUARE_SUMS(float16, Float16)
