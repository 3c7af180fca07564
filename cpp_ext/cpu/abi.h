// The C ABI between weightguard/kernels/native.py and the compiled kernels. Pointers are borrowed for the call, strides
// count entries (not bytes). native.py mirrors these structures field by field; change WG_ABI with any of them.
#pragma once

#include <cstdint>

#if defined(_WIN32)
#define WG_EXPORT extern "C" __declspec(dllexport)
#else
#define WG_EXPORT extern "C" __attribute__((visibility("default")))
#endif

constexpr int32_t WG_ABI = 6;

enum WgDtype : int32_t { WG_F32 = 0, WG_BF16 = 1, WG_F16 = 2 };
enum WgIsa : int32_t { WG_AUTO = 0, WG_PORTABLE = 1, WG_AVX2 = 2, WG_AVX512 = 3 };
enum WgStatus : int32_t { WG_OK = 0, WG_NOT_FINITE = 1, WG_NO_MEMORY = -1, WG_BAD_CALL = -2 };

struct WgMatrix {
    void* data;
    int64_t row_stride, column_stride;
};

// Take k entries of every row (by_row) or of the matrix by the key fp32(|x|)·norm, less the spare_k highest by the
// spare norms, and write the aligned value, or zero where `aligned.data` is null, over them. x is W, or W − W_aligned.
struct WgSelect {
    WgMatrix weights, aligned;
    int64_t rows, columns;
    const float *norms, *spare_norms;  // (columns,); null norms are ones, null spare_norms spare nothing
    int64_t k, spare_k;
    double *weight, *change, *before, *after;  // (rows,) row sums of squares, all null: not measured
    int64_t selected, changed;                 // out
    int32_t dtype, by_row, threads, isa;
};

struct WgPair {
    WgMatrix a, b;
    int64_t rows, columns;
    double *aa, *bb, *ab, *dd, *d4;  // (rows,) row sums of a², b², a·b, d² and d⁴ with d = a − b
    double largest;                  // out: max |d|
    int64_t changed;                 // out: entries with a != b
    int32_t dtype, threads, isa;
};

// W becomes origin + keep·(W − origin), origin 0 where its data is null: one rounding to float32 an operation, one to the dtype.
struct WgScale {
    WgMatrix weights, origin;
    int64_t rows, columns;
    double *weight, *change, *before, *after;  // (rows,) row sums of squares; the last two null without an origin
    int64_t changed;                           // out
    float keep;
    int32_t dtype, threads, isa;
};

struct WgSquares {
    const void* inputs;      // (rows, columns), rows `row_stride` entries apart
    const uint8_t* counted;  // (rows,), 0 leaves a row out
    double* total;           // (columns,), overwritten
    int64_t rows, columns, row_stride;
    int32_t dtype, threads, isa;
};

// inner = Vᵀ·x and outer = V·inner with V = a − b; `width`, the columns of x, is a multiple of 16.
struct WgProducts {
    WgMatrix a, b;
    int64_t rows, columns, width;
    const float* x;         // (rows, width), zeros behind up to a multiple of 64 rows
    double *inner, *outer;  // (columns, width), (rows, width), overwritten
    int32_t dtype, threads, isa;
};

// A running sha256; a new one holds the initial state of FIPS 180-4, and zeros.
struct WgSha256 {
    uint32_t state[8];
    uint64_t length;   // bytes so far
    uint8_t rest[64];  // the last length % 64 of them
};

struct WgHashed {
    WgSha256* hash;
    const uint8_t* data;
    int64_t size;
};

WG_EXPORT int32_t wg_abi();
WG_EXPORT int32_t wg_best_isa();
WG_EXPORT int32_t wg_select(WgSelect* call);
WG_EXPORT int32_t wg_pair(WgPair* call);
WG_EXPORT int32_t wg_scale(WgScale* call);
WG_EXPORT int32_t wg_squares(WgSquares* call);
WG_EXPORT int32_t wg_products(WgProducts* call);
WG_EXPORT int32_t wg_finite(const void* data, int64_t count, int32_t dtype, int32_t threads, int32_t isa);
WG_EXPORT int32_t wg_sha256_here();  // whether this machine has the SHA instructions, without which the next two must not be called
WG_EXPORT void wg_sha256_update(WgHashed* jobs, int32_t count);  // each hash once; the jobs are used up
WG_EXPORT void wg_sha256_digest(const WgSha256* hash, uint8_t* digest);

// Keys are int32 and not negative. mask (rows, columns): 1 for exactly k of every row, ties by lowest column.
WG_EXPORT int32_t wg_key_rows(const int32_t* keys, int64_t rows, int64_t columns, int64_t k, uint8_t* mask, int32_t isa);
// counts (bins,) grows by the number of keys in each bin: (key >> shift) − first, where that is below `bins`.
WG_EXPORT int32_t wg_key_counts(const int32_t* keys, int64_t count, int32_t shift, int32_t first, int64_t bins,
                                int64_t* counts);
