// The inner loops that exist once per instruction set, as tables of functions; everything else is written once.
//
// A row is worked through in groups of LANES columns, up to ROWS rows at a time, so that norms and levels come into the
// nearest cache once for all of them: W streams from memory, and every other stream beside it costs as much again.
//
// A key is the bit pattern of fp32(|x|)·norm read as int32: finite non-negative floats order like integers. Norms,
// thresholds and lane sums are "laid out": column j of a group sits at index place[j], the order in which that
// instruction set unpacks the dtype.
#pragma once

#include <cstdint>

#include "abi.h"

namespace wg {

constexpr int LANES = 32;                 // columns of a group, and lanes of a row sum (reference.LANES)
constexpr int ROWS = 4;                   // most rows of a call
constexpr int32_t INFINITE = 0x7F800000;  // the key of infinity; every finite key is below
constexpr int32_t NEVER = 0x7FFFFFFF;     // a threshold that nothing reaches
constexpr int64_t SLACK = 2 * LANES;      // entries that `collect` may write behind its last one

enum Sum { WEIGHT, CHANGE, BEFORE, AFTER, SUMS };

struct Sums {
    double lane[SUMS][LANES];  // laid out
};

// Whole groups of `rows` rows that lie row_stride bytes apart; `aligned` is null where W itself is scored.
struct Groups {
    char* weights;
    const char* aligned;
    int64_t row_stride, aligned_stride;
    const float* norms;        // laid out
    const float* spare_norms;  // laid out; null unless `careful` runs
    int64_t count;
    int64_t ahead;  // bytes ahead of what is read that is fetched towards the cache; 0 fetches nothing
    int rows;
};

// Search of one row: keys in [low, high) are appended to out in any order within a group, keys >= high are counted.
// low is at least 1, so padding (key 0) never counts. Calls add up.
struct Band {
    int32_t low = 1, high = INFINITE;
    int32_t* out = nullptr;
    int64_t inside = 0, above = 0;
};

// Thresholds of one row, laid out: a column is taken where its key reaches `take` and its spare key not `spare`.
struct Edges {
    int32_t take[LANES], spare[LANES];
};

// What was taken of one row; calls add up.
struct Taken {
    int64_t selected, changed;  // counted by the careful and the leveled variants only
    uint32_t largest;           // largest key, unsigned: at least INFINITE when one is NaN or infinite
    Sums sums;                  // added to by the measured variants
};

struct Scored {
    const uint8_t* place;
    // Keys of the given groups of the first row, LANES each, laid out.
    void (*sample)(const Groups&, const int64_t* which, int64_t count, int32_t* out);
    void (*collect)(const Groups&, Band* bands);
    // Overwrite what reaches the edges (one per row). `always` stores every group back: faster unless few are touched.
    void (*take)(const Groups&, const Edges* edges, bool always, Taken*);
    void (*take_measured)(const Groups&, const Edges* edges, bool always, Taken*);
    void (*take_careful)(const Groups&, const Edges* edges, bool always, Taken*);
};

// The same without keys, for a 16-bit W and one edge for many rows: a key grows with |w|, so each column has a level,
// the least magnitude (bits of |w|) whose key reaches the edge. Levels are in the order of the columns.
struct Leveled {
    // level[j] of norms[j] (in the order of the columns, finite and not negative) for the edge `value`, at least 1;
    // the magnitude of infinity where no finite one reaches it.
    void (*levels)(const float* norms, int64_t columns, int32_t value, uint16_t* level);
    // As Scored::collect between two levels; `largest` grows to the largest magnitude met.
    void (*collect)(const Groups&, const uint16_t* low, const uint16_t* high, Band* bands, uint32_t& largest);
    // Zero what reaches `low` and not `high` (null: nothing is spared).
    void (*take)(const Groups&, const uint16_t* low, const uint16_t* high, bool always, Taken*);
    void (*take_measured)(const Groups&, const uint16_t* low, const uint16_t* high, bool always, Taken*);
};

struct PairLanes {
    double aa[LANES] = {}, bb[LANES] = {}, ab[LANES] = {}, dd[LANES] = {}, d4[LANES] = {};
    double largest[LANES] = {};  // of d², in no particular order; the root of a rounded square is |d| again, exactly
    int64_t changed = 0;
};

struct Plain {
    const uint8_t* place;  // of the lanes of `pair`
    void (*pair)(const char* a, const char* b, int64_t groups, PairLanes&);
    // total[j] += Σ x² over the rows at the given addresses, in their order, for `columns` columns.
    void (*squares)(const char* const* rows, int64_t count, int64_t columns, double* total);
    bool (*finite)(const char* data, int64_t count);
    // out = origin + keep·(row − origin), origin 0 where it is null; each operation rounded to float32, the last also to
    // the dtype, both to nearest even. What a NaN becomes is left open.
    void (*scale)(const char* row, const char* origin, float keep, int64_t count, char* out);
};

constexpr int64_t PRODUCT_BLOCK = 64;  // rows and columns of a piece of V (reference.PRODUCT_BLOCK)
constexpr int64_t PRODUCT_STRIP = 512;  // columns whose sums are held side by side
constexpr int64_t OUTER_ROWS = 16;       // rows of a piece of `outer`

// A piece of a and of b, columns next to each other; pitches in bytes.
struct Sides {
    const char *a, *b;
    int64_t a_pitch, b_pitch;
};

// A piece of V = a − b, rounded to float32, meets PRODUCT_BLOCK rows of x; width is a multiple of 16. Products and sums
// over q are rounded to float32 one after the other, the sum is added in double. `next` will be read soon.
struct Products {
    // total[c·PRODUCT_STRIP + p] += Σ_q V[q, p]·x[q, c]
    void (*inner)(const Sides& v, const Sides& next, const float* x, int64_t width, double* total);
    // total[p·width + c] += Σ_q V[p, q]·x[q, c], OUTER_ROWS rows p
    void (*outer)(const Sides& v, const Sides& next, const float* x, int64_t width, double* total);
};

struct Table {
    Scored scored[3][2];                                                   // dtype; 0 scores W, 1 scores W − W_aligned
    Leveled leveled[3];                                                    // dtype; null functions for float32
    Plain plain[3];                                                        // dtype
    Products products[3];                                                  // dtype
    int64_t (*reaching)(const int32_t* keys, int64_t count, int32_t low);  // how many keys are >= low
};

extern const Table portable_table;
#if defined(__x86_64__)
extern const Table avx2_table;
extern const Table avx512_table;
#endif
const Table* table_of(int32_t isa);  // null when this machine lacks it

inline int64_t size_of(int32_t dtype) { return dtype == WG_F32 ? 4 : 2; }

}  // namespace wg
