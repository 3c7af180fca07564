// Statistics of two matrices in one pass, one block a row of 256 threads: sums (rows, 5) of a², b², a·b, d² and d⁴ with
// d = a − b in double, largest (rows,) |d|, changed (rows,) entries with a != b. NaN or infinity makes a² or b² so.
#include "values.cuh"

constexpr int THREADS = 256, SUMS = 5;

template <class T>
__device__ void pair_row(const T* a, const T* b, double* sums, double* largest, int* changed, int columns) {
    __shared__ double part[SUMS + 1][THREADS];
    __shared__ int differ;
    const long long base = (long long)blockIdx.x * columns;
    if (threadIdx.x == 0) differ = 0;
    __syncthreads();
    double mine[SUMS + 1] = {};
    int count = 0;
    for (int j = threadIdx.x; j < columns; j += THREADS) {
        const double x = value_of(a[base + j]), y = value_of(b[base + j]), d = x - y, square = d * d;
        mine[0] += x * x;
        mine[1] += y * y;
        mine[2] += x * y;
        mine[3] += square;
        mine[4] += square * square;
        mine[5] = fmax(mine[5], fabs(d));
        count += x != y;
    }
    for (int s = 0; s <= SUMS; ++s) part[s][threadIdx.x] = mine[s];
    atomicAdd(&differ, count);
    __syncthreads();
    for (int step = THREADS / 2; step; step /= 2) {
        if (int(threadIdx.x) < step) {
            for (int s = 0; s < SUMS; ++s) part[s][threadIdx.x] += part[s][threadIdx.x + step];
            part[SUMS][threadIdx.x] = fmax(part[SUMS][threadIdx.x], part[SUMS][threadIdx.x + step]);
        }
        __syncthreads();
    }
    if (threadIdx.x) return;
    for (int s = 0; s < SUMS; ++s) sums[(long long)blockIdx.x * SUMS + s] = part[s][0];
    largest[blockIdx.x] = part[SUMS][0];
    changed[blockIdx.x] = differ;
}

#define PAIR(NAME, T)                                                                                               \
    extern "C" __global__ void pair_##NAME(const T* a, const T* b, double* sums, double* largest, int* changed,     \
                                           int columns) {                                                           \
        pair_row<T>(a, b, sums, largest, changed, columns);                                                         \
    }
PAIR(float32, float)
PAIR(bfloat16, Bfloat16)
PAIR(float16, Float16)
