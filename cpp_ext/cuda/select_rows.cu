// Exactly k entries of every row by the key fp32(|x|)·norm, ties by lowest column, overwritten in place; x is W, or
// W − W_aligned with RESTORE. A block takes every gridDim.x-th row, fetches the next one while it works on this one, and
// keeps a row's keys in registers: the threshold is closed in by counting keys, from where it was in the row before, until
// the few keys left can be ranked in shared memory.
// Compiled for one TYPE and one width: SPANS vectors of 16 bytes for each of THREADS threads hold a row of COLUMNS, BLOCKS
// blocks a multiprocessor, BUFFERS (1 or 2) rows in shared memory; RESTORE and ALIGNED (rows start at multiples of 16
// bytes) are 0 or 1.
#include "values.cuh"

constexpr int INFINITE = 0x7F800000, PADDING = -1, FOUND = -1;
constexpr int CANDIDATES = 64, LINES = 24;  // counts on lines before the middle is tried
constexpr float REACH = 24;                  // keys on either side of where the threshold is expected
constexpr int EACH = Vector<TYPE>::EACH, STEP = THREADS * EACH, WARPS = THREADS / 32, PLACES = SPANS * STEP;

// A row as it was read, and the row it is given back from; every thread looks at its own vectors only.
struct Row {
    Vector<TYPE> part[1 + RESTORE][SPANS][THREADS];

    __device__ __forceinline__ Vector<TYPE>& weights(int span) { return part[0][span][threadIdx.x]; }
    __device__ __forceinline__ Vector<TYPE>& origin(int span) { return part[RESTORE][span][threadIdx.x]; }
};

struct Keys {
    int at[SPANS][EACH];
};

// Keys from low on are at_low >= k, those from high on at_high <= k.
struct Bracket {
    int low, high, at_low, at_high;
};

// Entries by (key, lowest column).
struct Candidates {
    unsigned long long at[CANDIDATES];
    int held;
};

// The thread's first column, in disguise: the compiler would keep every column in a register of its own over all rows.
__device__ __forceinline__ int first_column() {
    int first = threadIdx.x * EACH;
    asm volatile("" : "+r"(first));
    return first;
}

__device__ __forceinline__ bool within(int span, int mine) {
    return (span + 1) * STEP <= COLUMNS || mine + span * STEP < COLUMNS;
}

__device__ __forceinline__ void fetch(Vector<TYPE>& into, const TYPE* row, int column) {
    if constexpr (ALIGNED) {
        const unsigned to = unsigned(__cvta_generic_to_shared(&into));
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(row + column) : "memory");
    } else {
        into = part_of<false>(row, column, COLUMNS);
    }
}

__device__ __forceinline__ void fetch(Row& into, const TYPE* row, const TYPE* origin, int mine) {
#pragma unroll
    for (int span = 0; span < SPANS; ++span)
        if (within(span, mine)) {
            fetch(into.weights(span), row, mine + span * STEP);
            if (RESTORE) fetch(into.origin(span), origin, mine + span * STEP);
        }
    asm volatile("cp.async.commit_group;" ::: "memory");
}

__device__ __forceinline__ void arrived() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

__device__ __forceinline__ int key_of(const Vector<TYPE>& weights, const Vector<TYPE>& origin, int e, float norm) {
    const float value = value_at(weights, e), x = RESTORE ? __fsub_rn(value, value_at(origin, e)) : value;
    return __float_as_int(__fmul_rn(fabsf(x), norm));
}

// Returns the thread's largest key.
__device__ __forceinline__ int score(Keys& keys, Row& row, const float* norms, int mine) {
    constexpr int FLOATS = Vector<float>::EACH;
    Vector<float> factors[SPANS][EACH / FLOATS];
#pragma unroll
    for (int span = 0; span < SPANS; ++span)
        if (within(span, mine))
#pragma unroll
            for (int f = 0; f < EACH / FLOATS; ++f)
                factors[span][f] = part_of<ALIGNED>(norms, mine + span * STEP + f * FLOATS, COLUMNS);
    arrived();
    int largest = PADDING;
#pragma unroll
    for (int span = 0; span < SPANS; ++span) {
        const Vector<TYPE> weights = row.weights(span), origin = row.origin(span);
#pragma unroll
        for (int e = 0; e < EACH; ++e) {
            const int key = key_of(weights, origin, e, factors[span][e / FLOATS].at[e % FLOATS]);
            const bool inside = (span + 1) * STEP <= COLUMNS || mine + span * STEP + e < COLUMNS;
            keys.at[span][e] = inside ? key : PADDING;
            largest = max(largest, keys.at[span][e]);
        }
    }
    return largest;
}

// How many of a warp's keys lie below low, and how many below high in the upper half: two instructions a key and threshold.
__device__ __forceinline__ unsigned below(const Keys& keys, int low, int high) {
    unsigned under_low = 0, under_high = 0;
#pragma unroll
    for (int span = 0; span < SPANS; ++span)
#pragma unroll
        for (int e = 0; e < EACH; ++e) {
            under_low += unsigned(keys.at[span][e] - low) >> 31;
            under_high += unsigned(keys.at[span][e] - high) >> 31;
        }
    return __reduce_add_sync(~0u, under_low | under_high << 16);
}

// Two thresholds to count at; both FOUND when there is no need to.
struct Goal {
    int low, high;
};

// Lives in the first warp: where the search stands, and what it learnt from the rows before.
struct Search {
    int last, at_last, step = 0;
    float units_a_key = 0, usual = INFINITE / 2;

    __device__ __forceinline__ Goal around(float t, float keys) const {
        const float wide = fmaxf(keys * units_a_key, 1);
        return {int(fmaxf(t - wide, 1)), int(fminf(t + wide, float(INFINITE - 1)))};
    }

    __device__ __forceinline__ void learn(Bracket& in, int t, int count, int k) {
        if (step++ && count != at_last) units_a_key = __fdividef(float(t - last), float(at_last - count));
        if (count >= k && t > in.low) in.low = t, in.at_low = count;
        if (count <= k && t < in.high) in.high = t, in.at_high = count;
        last = t, at_last = count;
    }

    // Around where the line through the last two counts reaches k; the middle once the lines have had their turns.
    __device__ __forceinline__ Goal next(Bracket& in, Goal at, unsigned counts, int k) {
        learn(in, at.low, PLACES - int(counts & 0xFFFF), k);
        learn(in, at.high, PLACES - int(counts >> 16), k);
        if (in.high - in.low <= 1 || in.at_low - in.at_high <= CANDIDATES) return {FOUND, FOUND};
        Goal to{in.low + (in.high - in.low) / 2, in.high};
        if (step < LINES && units_a_key > 0) to = around(float(last) + float(at_last - k) * units_a_key, REACH / 2);
        return {max(min(to.low, in.high - 1), in.low + 1), max(min(to.high, in.high - 1), in.low + 1)};
    }

    // Where the next row is begun: between the rows before and this one.
    __device__ __forceinline__ Goal begin(const Bracket& in, int k) {
        const float here = fminf(float(in.low) + float(in.at_low - k) * fmaxf(units_a_key, 0), float(in.high));
        usual = usual == float(INFINITE / 2) ? here : 0.5f * (usual + here);
        step = 0;
        return around(usual, REACH);
    }
};

// The bracket closed until it holds at most CANDIDATES keys, or one value; start is where this row and the next begin.
__device__ __forceinline__ Bracket closed(const Keys& keys, int k, Search& search, Goal& start) {
    __shared__ unsigned counts[WARPS];
    __shared__ Goal goal, next_start;
    __shared__ Bracket found;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Bracket in{0, INFINITE, COLUMNS, 0};
    for (Goal at = start; at.low != FOUND; at = goal) {
        const unsigned count = below(keys, at.low, at.high);
        if (lane == 0) counts[warp] = count;
        __syncthreads();
        if (warp == 0) {
            at = search.next(in, at, __reduce_add_sync(~0u, lane < WARPS ? counts[lane] : 0), k);
            if (lane == 0) goal = at;
            if (at.low == FOUND) {
                const Goal begun = search.begin(in, k);
                if (lane == 0) found = in, next_start = begun;
            }
        }
        __syncthreads();
    }
    start = next_start;
    return found;
}

// Keys from high on are overwritten, those from low on are listed.
__device__ __forceinline__ void overwrite(const Keys& keys, Row& held, TYPE* row, const float* norms, int mine, int low,
                                          int high, Candidates& list) {
    unsigned bits = 0;
#pragma unroll
    for (int span = 0; span < SPANS; ++span) {
        const Vector<TYPE> origin = RESTORE ? held.origin(span) : Vector<TYPE>{};
#pragma unroll
        for (int e = 0; e < EACH; ++e) {
            const int key = keys.at[span][e];
            if (key >= high) row[mine + span * STEP + e] = origin.at[e];
            if (key >= low && key < high) bits |= 1u << (span * EACH + e);
        }
    }
    for (; bits; bits &= bits - 1) {
        const int bit = __ffs(bits) - 1, span = bit / EACH, e = bit % EACH, column = mine + span * STEP + e;
        const int key = key_of(held.weights(span), held.origin(span), e, norms[column]);
        list.at[atomicAdd(&list.held, 1)] = (unsigned long long)key << 32 | unsigned(~column);
    }
}

// Returns 1 where the entry already was what it becomes; only a key of zero can be one.
__device__ __forceinline__ int take(TYPE* row, const TYPE* origin, int column, int key) {
    const TYPE becomes = RESTORE ? origin[column] : TYPE{};
    const int same = key == 0 && value_of(row[column]) == value_of(becomes);
    row[column] = becomes;
    return same;
}

// Takes the first `left` of the list: a warp ranks one candidate at a time, its lanes compare.
__device__ __forceinline__ int ranked(const Candidates& list, TYPE* row, const TYPE* origin, int left) {
    const int count = list.held, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    unsigned long long others[CANDIDATES / 32];
#pragma unroll
    for (int part = 0; part < CANDIDATES / 32; ++part)
        others[part] = part * 32 + lane < count ? list.at[part * 32 + lane] : 0;
    int same = 0;
    for (int i = warp; i < count; i += WARPS) {
        const unsigned long long candidate = list.at[i];
        int above = 0;
#pragma unroll
        for (int part = 0; part < CANDIDATES / 32; ++part)
            above += __popc(__ballot_sync(~0u, others[part] > candidate));
        if (lane == 0 && above < left) same += take(row, origin, int(~unsigned(candidate)), int(candidate >> 32));
    }
    return same;
}

// Rare, and so in few registers: the keys are made again. Calls work with the thread's columns up to last of this value.
template <class Work>
__device__ __forceinline__ void for_each_tied(Row& held, const float* norms, int mine, int value, int last, Work work) {
#pragma unroll 1
    for (int i = 0; i < SPANS * EACH; ++i) {
        const int span = i / EACH, column = mine + span * STEP + i % EACH;
        if (column <= last && key_of(held.weights(span), held.origin(span), i % EACH, norms[column]) == value) work(column);
    }
}

// Takes the first `left` keys of one value, more than can be ranked: the column of the last is found by counting.
__device__ __forceinline__ int tied(Row& held, TYPE* row, const TYPE* origin, const float* norms, int mine, int value,
                                    int left) {
    __shared__ int total;
    int before = -1, last = COLUMNS - 1;
    while (last - before > 1) {
        const int middle = before + (last - before) / 2;
        int count = 0;
        if (threadIdx.x == 0) total = 0;
        __syncthreads();
        for_each_tied(held, norms, mine, value, middle, [&](int) { ++count; });
        atomicAdd(&total, count);
        __syncthreads();
        (total >= left ? last : before) = middle;
        __syncthreads();
    }
    int same = 0;
    for_each_tied(held, norms, mine, value, last, [&](int column) { same += take(row, origin, column, value); });
    return same;
}

// told: {1 when a key is NaN or infinite, taken entries that did not change}
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    select_rows(TYPE* weights, const TYPE* aligned, const float* norms, unsigned long long* told, int rows, int k) {
    extern __shared__ uint4 shared[];
    __shared__ Candidates lists[2];  // in turn: a warp may still rank a row while another is on with the next
    Row* held = reinterpret_cast<Row*>(shared);
    Search search;
    Goal start = search.around(search.usual, 0);
    int turn = 0;
    const auto begin = [=](int r, Row& into) {
        const long long at = (long long)r * COLUMNS;
        if (r < rows) fetch(into, weights + at, aligned + at, first_column());
    };
    begin(blockIdx.x, held[0]);
    for (int r = blockIdx.x; r < rows; r += gridDim.x) {
        TYPE* row = weights + (long long)r * COLUMNS;
        const TYPE* origin = aligned + (long long)r * COLUMNS;
        Row &now = held[turn % BUFFERS], &then = held[(turn + 1) % BUFFERS];
        Candidates& list = lists[turn];
        const int mine = first_column();
        Keys keys;
        const int largest = score(keys, now, norms, mine);
        if (largest >= INFINITE) atomicOr(told, 1ull);
        if (BUFFERS > 1) begin(r + gridDim.x, then);
        if (k) {
            if (threadIdx.x == 0) list.held = 0;  // the barriers of `closed` show it to the others
            const Bracket in = closed(keys, k, search, start);
            const bool few = in.at_low - in.at_high <= CANDIDATES;
            overwrite(keys, now, row, norms, mine, few ? in.low : in.high, in.high, list);
            __syncthreads();
            const int left = k - in.at_high;
            const int same = few ? ranked(list, row, origin, left) : tied(now, row, origin, norms, mine, in.low, left);
            if (same) atomicAdd(told + 1, (unsigned long long)same);
        }
        if (BUFFERS == 1) begin(r + gridDim.x, then);
        turn ^= 1;
    }
}
