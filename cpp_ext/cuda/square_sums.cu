// Column sums of squares in double over the rows that are counted, in one launch and in one order: a warp adds its rows,
// a block its warps, and the block that finishes last in a group of columns adds the parts of all of them.
// Compiled for one TYPE, and for rows that are ALIGNED to vectors or not.
#include "values.cuh"

constexpr int WARPS = 8, EACH = Vector<TYPE>::EACH, WIDTH = 32 * EACH, AHEAD = 4;

// parts (gridDim.y, columns) holds each block's sums, arrived (gridDim.x,) zeros; total (columns,) is the result.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
    square_sums(const TYPE* inputs, const unsigned char* counted, double* parts, unsigned* arrived, double* total,
                int rows, int columns) {
    __shared__ double sums[WARPS][WIDTH];
    __shared__ bool last;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, start = blockIdx.x * WIDTH, first = start + lane * EACH;
    double sum[EACH] = {};
    const int step = WARPS * gridDim.y;
    if (first < columns)
        for (int row = blockIdx.y * WARPS + warp; row < rows; row += AHEAD * step) {
            Vector<TYPE> held[AHEAD];
#pragma unroll
            for (int a = 0; a < AHEAD; ++a) {
                const int at = row + a * step;
                held[a] = Vector<TYPE>{};
                if (at < rows && counted[at]) held[a] = part_of<ALIGNED>(inputs + (long long)at * columns, first, columns);
            }
#pragma unroll
            for (int a = 0; a < AHEAD; ++a)
#pragma unroll
                for (int e = 0; e < EACH; ++e) {
                    const double x = value_of(held[a].at[e]);
                    sum[e] += x * x;
                }
        }
#pragma unroll
    for (int e = 0; e < EACH; ++e) sums[warp][lane * EACH + e] = sum[e];
    __syncthreads();
    for (int j = threadIdx.x; j < WIDTH && start + j < columns; j += WARPS * 32) {
        double of_block = 0;
        for (int w = 0; w < WARPS; ++w) of_block += sums[w][j];
        parts[(long long)blockIdx.y * columns + start + j] = of_block;
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(arrived + blockIdx.x, 1u) == gridDim.y - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    for (int j = threadIdx.x; j < WIDTH && start + j < columns; j += WARPS * 32) {
        double all = 0;
#pragma unroll 8
        for (int y = 0; y < int(gridDim.y); ++y) all += __ldcg(parts + (long long)y * columns + start + j);
        total[start + j] = all;
    }
}
