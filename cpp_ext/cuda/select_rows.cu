// Exactly k entries of every row by the key fp32(|x|)·norm, ties by lowest column, overwritten in place; x is W, or
// W − W_aligned with `restore`. One block a row: the k-th largest key is built from its highest bit, 31 counts over keys
// that lie in shared memory where they fit (`staged`).
#include "values.cuh"

constexpr unsigned INFINITE = 0x7F800000u;

__device__ int block_sum(int value) {
    __shared__ int parts[33];
    for (int step = 16; step; step /= 2) value += __shfl_down_sync(0xFFFFFFFFu, value, step);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    if (threadIdx.x == 0) {
        int total = 0;
        for (int warp = 0; warp < int(blockDim.x) / 32; ++warp) total += parts[warp];
        parts[32] = total;
    }
    __syncthreads();
    const int total = parts[32];
    __syncthreads();  // nobody writes the next sum before all have read this one
    return total;
}

// How many threads below this one hold true; `total` gets how many do in the whole block.
__device__ int block_rank(bool flag, int& total) {
    __shared__ int counts[32];
    const unsigned held = __ballot_sync(0xFFFFFFFFu, flag);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (lane == 0) counts[warp] = __popc(held);
    __syncthreads();
    int before = 0;
    total = 0;
    for (int other = 0; other < int(blockDim.x) / 32; ++other) {
        if (other < warp) before += counts[other];
        total += counts[other];
    }
    __syncthreads();
    return before + __popc(held & ((1u << lane) - 1));
}

template <class T>
__device__ void select_row(T* weights, const T* aligned, const float* norms, int* not_finite, int columns, int k,
                           int restore, int staged) {
    extern __shared__ int cached[];
    T* row = weights + (long long)blockIdx.x * columns;
    const T* origin = aligned + (long long)blockIdx.x * columns;
    const auto computed = [&](int j) {
        const float w = value_of(row[j]), x = restore ? __fsub_rn(w, value_of(origin[j])) : w;
        return __float_as_int(__fmul_rn(fabsf(x), norms[j]));
    };
    const auto key = [&](int j) { return staged ? cached[j] : computed(j); };
    bool bad = false;
    for (int j = threadIdx.x; j < columns; j += blockDim.x) {
        const int found = computed(j);
        bad |= unsigned(found) >= INFINITE;
        if (staged) cached[j] = found;
    }
    if (bad) atomicOr(not_finite, 1);
    __syncthreads();
    const auto reaching = [&](int low) {
        int count = 0;
        for (int j = threadIdx.x; j < columns; j += blockDim.x) count += key(j) >= low;
        return block_sum(count);
    };
    int value = 0;
    for (int bit = 30; bit >= 0; --bit)
        if (reaching(value | 1 << bit) >= k) value |= 1 << bit;
    int ties = k - (value == 0x7FFFFFFF ? 0 : reaching(value + 1));
    for (int start = 0; start < columns; start += blockDim.x) {
        const int j = start + threadIdx.x, found = j < columns ? key(j) : -1;
        int tied;
        const int rank = block_rank(j < columns && found == value, tied);
        if (j < columns && (found > value || (found == value && rank < ties)))
            row[j] = restore ? origin[j] : T{};
        ties -= tied;
    }
}

#define SELECT_ROWS(NAME, T)                                                                                       \
    extern "C" __global__ void select_rows_##NAME(T* weights, const T* aligned, const float* norms, int* not_finite, \
                                                  int columns, int k, int restore, int staged) {                   \
        select_row<T>(weights, aligned, norms, not_finite, columns, k, restore, staged);                           \
    }
SELECT_ROWS(float32, float)
SELECT_ROWS(bfloat16, Bfloat16)
SELECT_ROWS(float16, Float16)
