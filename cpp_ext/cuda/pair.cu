// Statistics of two tensors in one pass: the sums of a², b², a·b, d² and d⁴ with d = a − b in double, the largest |d|, the
// number of entries with a != b. NaN or infinity makes a² or b² so. A block's figures go to a row of their own; the caller
// adds them up.
// Compiled for one TYPE, and for rows that are ALIGNED to vectors or not.
#include "values.cuh"

constexpr int BLOCK = 256, WARPS = BLOCK / 32, FIGURES = 7, LARGEST = 5, EACH = Vector<TYPE>::EACH, AHEAD = 2;

__device__ inline void add(double (&mine)[FIGURES], TYPE from, TYPE to) {
    const double x = value_of(from), y = value_of(to), d = x - y, square = d * d;
    mine[0] += x * x;
    mine[1] += y * y;
    mine[2] += x * y;
    mine[3] += square;
    mine[4] += square * square;
    mine[LARGEST] = fmax(mine[LARGEST], fabs(d));
    mine[6] += x != y;
}

// found (gridDim.x, FIGURES)
extern "C" __global__ void __launch_bounds__(BLOCK)
    pair(const TYPE* a, const TYPE* b, double* found, int rows, int columns) {
    __shared__ double parts[WARPS][FIGURES];
    double mine[FIGURES] = {};
    const long long entries = (long long)rows * columns;
    const long long vectors = ALIGNED ? entries / EACH : 0, step = (long long)gridDim.x * BLOCK;
    const long long me = (long long)blockIdx.x * BLOCK + threadIdx.x;
    for (long long v = me; v < vectors; v += AHEAD * step) {
        Vector<TYPE> x[AHEAD], y[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            x[i] = y[i] = Vector<TYPE>{};
            const long long at = (v + i * step) * EACH;
            if (v + i * step < vectors) x[i] = vector_at(a + at), y[i] = vector_at(b + at);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i)
#pragma unroll
            for (int e = 0; e < EACH; ++e) add(mine, x[i].at[e], y[i].at[e]);
    }
    for (long long j = vectors * EACH + me; j < entries; j += step) add(mine, a[j], b[j]);
#pragma unroll
    for (int f = 0; f < FIGURES; ++f)
        for (int across = 16; across; across /= 2) {
            const double other = __shfl_down_sync(~0u, mine[f], across);
            mine[f] = f == LARGEST ? fmax(mine[f], other) : mine[f] + other;
        }
    if (threadIdx.x % 32 == 0)
        for (int f = 0; f < FIGURES; ++f) parts[threadIdx.x / 32][f] = mine[f];
    __syncthreads();
    if (threadIdx.x >= FIGURES) return;
    const int f = threadIdx.x;
    double all = parts[0][f];
    for (int w = 1; w < WARPS; ++w) all = f == LARGEST ? fmax(all, parts[w][f]) : all + parts[w][f];
    found[(long long)blockIdx.x * FIGURES + f] = all;
}
