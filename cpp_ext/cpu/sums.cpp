// Sums in double: pair statistics by row, column squares, and the finite check.
#include <algorithm>
#include <atomic>
#include <cmath>

#include "rows.h"
#include "threads.h"

namespace wg {
namespace {

constexpr int64_t BLOCK = 1 << 16;  // entries of a block, about
constexpr int64_t STRIP = 512;      // columns whose totals stay in the nearest cache

struct Extremes {
    double largest = 0;
    int64_t changed = 0;
};

void pair_row(const WgPair& call, const Plain& kernels, const char* a, const char* b, int64_t row, Extremes& e) {
    const int64_t whole = call.columns / LANES, tail = call.columns % LANES, entry = size_of(call.dtype);
    PairLanes lanes;
    kernels.pair(a, b, whole, lanes);
    if (tail) {
        char x[LANES * 4] = {}, y[LANES * 4] = {};
        std::memcpy(x, a + whole * LANES * entry, size_t(tail * entry));
        std::memcpy(y, b + whole * LANES * entry, size_t(tail * entry));
        kernels.pair(x, y, 1, lanes);
    }
    call.aa[row] = folded(lanes.aa, kernels.place);
    call.bb[row] = folded(lanes.bb, kernels.place);
    call.ab[row] = folded(lanes.ab, kernels.place);
    call.dd[row] = folded(lanes.dd, kernels.place);
    call.d4[row] = folded(lanes.d4, kernels.place);
    e.largest = std::max(e.largest, std::sqrt(*std::max_element(lanes.largest, lanes.largest + LANES)));
    e.changed += lanes.changed;
}

bool all_finite(const double* values, int64_t count) {
    return std::all_of(values, values + count, [](double value) { return std::isfinite(value); });
}

}  // namespace

WgStatus pair(WgPair& call, const Table& table) {
    call.largest = 0, call.changed = 0;
    if (call.rows == 0 || call.columns == 0) return WG_OK;
    const bool packed = call.a.column_stride != 1 || call.b.column_stride != 1;
    const int64_t step = std::clamp<int64_t>(std::max<int64_t>(BLOCK / call.columns, packed ? 32 : 1), 1, call.rows);
    const int threads = int(std::clamp<int64_t>(call.rows * call.columns / BLOCK, 1, std::max(call.threads, 1)));
    const int64_t entry = size_of(call.dtype);
    std::vector<Block> left, right;
    for (int i = 0; i < threads; ++i)
        left.emplace_back(call.a, call.columns, entry, step), right.emplace_back(call.b, call.columns, entry, step);
    std::vector<Extremes> found{size_t(threads)};
    parallel(threads, (call.rows + step - 1) / step, [&](int64_t block, int thread) {
        Block &a = left[size_t(thread)], &b = right[size_t(thread)];
        const int64_t first = block * step, last = std::min(first + step, call.rows);
        a.open(first, last), b.open(first, last);
        for (int64_t r = first; r < last; ++r)
            pair_row(call, table.plain[call.dtype], a.row(r), b.row(r), r, found[size_t(thread)]);
    });
    for (const Extremes& each : found) {
        call.largest = std::max(call.largest, each.largest);
        call.changed += each.changed;
    }
    return all_finite(call.aa, call.rows) && all_finite(call.bb, call.rows) ? WG_OK : WG_NOT_FINITE;
}

// A row is scaled beside itself, compared with what it was, and only then put back.
WgStatus scale(WgScale& call, const Table& table) {
    call.changed = 0;
    if (call.rows == 0 || call.columns == 0) return WG_OK;
    const Plain& kernels = table.plain[call.dtype];
    const int64_t entry = size_of(call.dtype), step = std::clamp<int64_t>(BLOCK / call.columns, 1, call.rows);
    const int threads = int(std::clamp<int64_t>(call.rows * call.columns / BLOCK, 1, std::max(call.threads, 1)));
    std::vector<double> scaled(size_t(call.rows)), unused(size_t(call.rows));
    double *const none = unused.data(), *const squares = scaled.data();
    const auto sums = [&](double* aa, double* bb, double* dd) {
        return WgPair{call.weights, call.origin, call.rows, call.columns, aa, bb, none, dd, none, 0, 0, call.dtype, 0, 0};
    };
    const WgPair moved = sums(call.weight, squares, call.change), before = sums(none, none, call.before),
                 after = sums(none, none, call.after);
    std::vector<Block> weights, origins;
    for (int i = 0; i < threads; ++i)
        weights.emplace_back(call.weights, call.columns, entry, step),
            origins.emplace_back(call.origin, call.columns, entry, step);
    std::vector<Lined<char>> rows(size_t(threads), Lined<char>(size_t(call.columns * entry)));
    std::vector<Extremes> found{size_t(threads)}, ignored{size_t(threads)};
    parallel(threads, (call.rows + step - 1) / step, [&](int64_t block, int thread) {
        Block &w = weights[size_t(thread)], &o = origins[size_t(thread)];
        char* const y = rows[size_t(thread)].data();
        const int64_t first = block * step, last = std::min(first + step, call.rows);
        w.open(first, last), o.open(first, last);
        for (int64_t r = first; r < last; ++r) {
            char* const x = w.row(r);
            const char* const origin = o.row(r);
            kernels.scale(x, origin, call.keep, call.columns, y);
            pair_row(moved, kernels, x, y, r, found[size_t(thread)]);
            if (origin) {
                pair_row(before, kernels, x, origin, r, ignored[size_t(thread)]);
                pair_row(after, kernels, y, origin, r, ignored[size_t(thread)]);
            }
            std::memcpy(x, y, size_t(call.columns * entry));
        }
        w.put_back();
    });
    for (const Extremes& each : found) call.changed += each.changed;
    const bool good = all_finite(call.weight, call.rows) && all_finite(squares, call.rows) &&
                      (!call.origin.data || all_finite(call.before, call.rows));
    return good ? WG_OK : WG_NOT_FINITE;
}

WgStatus squares(WgSquares& call, const Table& table) {
    std::fill(call.total, call.total + call.columns, 0.0);
    const int64_t entry = size_of(call.dtype), strips = (call.columns + STRIP - 1) / STRIP;
    std::vector<const char*> rows;
    for (int64_t r = 0; r < call.rows; ++r)
        if (call.counted[r]) rows.push_back(static_cast<const char*>(call.inputs) + r * call.row_stride * entry);
    const int threads = int(std::clamp<int64_t>(call.rows * call.columns / BLOCK, 1, std::max(call.threads, 1)));
    // A strip belongs to one thread, so a column is summed in the order of its rows.
    parallel(threads, strips, [&](int64_t strip, int) {
        const int64_t start = strip * STRIP, width = std::min(STRIP, call.columns - start);
        const char* some[64];
        for (size_t first = 0; first < rows.size(); first += 64) {
            const size_t count = std::min<size_t>(64, rows.size() - first);
            for (size_t i = 0; i < count; ++i) some[i] = rows[first + i] + start * entry;
            table.plain[call.dtype].squares(some, int64_t(count), width, call.total + start);
        }
    });
    return WG_OK;
}

WgStatus finite(const void* data, int64_t count, int32_t dtype, int threads, const Table& table) {
    constexpr int64_t PIECE = int64_t(1) << 18;
    const int64_t pieces = (count + PIECE - 1) / PIECE;
    std::atomic<bool> good{true};
    parallel(int(std::clamp<int64_t>(pieces, 1, std::max(threads, 1))), pieces, [&](int64_t piece, int) {
        const char* start = static_cast<const char*>(data) + piece * PIECE * size_of(dtype);
        if (good && !table.plain[dtype].finite(start, std::min(PIECE, count - piece * PIECE))) good = false;
    });
    return good ? WG_OK : WG_NOT_FINITE;
}

}  // namespace wg
