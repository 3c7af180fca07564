// Selection over keys that somebody else made, int32 and not negative, whatever they score: exactly k of every row, and
// the counts from which a threshold over many tensors is found.
#include <algorithm>
#include <vector>

#include "threads.h"
#include "threshold.h"

namespace wg {
namespace {

// The k-th largest key of a row and how many keys that equal it are taken; 0 < k <= columns.
struct RowEdge {
    int32_t value;
    int64_t ties;
};

RowEdge row_edge(const int32_t* keys, int64_t columns, int64_t k, const Table& table) {
    const auto reaching = [&](int32_t value) { return table.reaching(keys, columns, value); };
    const int64_t at_most = reaching(NEVER);
    if (at_most >= k) return {NEVER, k};
    const Span s = narrowed(reaching, {0, NEVER, columns, at_most}, k);
    return {s.low, s.at_low == k ? columns : k - s.at_high};
}

void mark_row(const int32_t* keys, int64_t columns, const RowEdge& edge, uint8_t* mask) {
    for (int64_t j = 0; j < columns; ++j) mask[j] = keys[j] > edge.value;
    int64_t ties = edge.ties;
    for (int64_t j = 0; j < columns && ties; ++j)
        if (keys[j] == edge.value) mask[j] = 1, --ties;
}

}  // namespace

WgStatus key_rows(const int32_t* keys, int64_t rows, int64_t columns, int64_t k, uint8_t* mask, const Table& table) {
    for (int64_t r = 0; r < rows; ++r, keys += columns, mask += columns)
        if (k)
            mark_row(keys, columns, row_edge(keys, columns, k, table), mask);
        else
            std::fill(mask, mask + columns, uint8_t(0));
    return WG_OK;
}

// counts[(key >> shift) − first] goes up for every key whose bin is below `bins`.
WgStatus key_counts(const int32_t* keys, int64_t count, int32_t shift, int32_t first, int64_t bins, int64_t* counts) {
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t bin = uint32_t(keys[i] >> shift) - uint32_t(first);
        if (bin < bins) ++counts[bin];
    }
    return WG_OK;
}

}  // namespace wg
