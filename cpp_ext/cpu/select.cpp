// Select and apply: exactly k keys of each row or of the matrix, ties by lowest index; the entries are overwritten in
// place and the squares of the change are summed on the way.
#include "job.h"

namespace wg {

int64_t equal_in(const Worker& w, int row, const float* norms, int64_t first, int64_t last, int32_t value) {
    Band band = w.band(row, value ? value : 1, value ? value + 1 : INFINITE);
    w.rows.collect(row, norms, first, last, band);
    if (value) return band.inside;
    return std::min(last * LANES, w.rows.columns()) - first * LANES - band.inside - band.above;
}

int64_t behind_nth(const Job& job, const Worker& w, int row, const float* norms, int32_t value, int64_t nth) {
    int64_t first = 0, last = w.rows.groups();
    while (last - first > 1) {
        const int64_t middle = (first + last) / 2, found = equal_in(w, row, norms, first, middle, value);
        if (found >= nth)
            last = middle;
        else
            nth -= found, first = middle;
    }
    int32_t keys[LANES];
    w.rows.keys(row, norms, first, keys);
    for (int64_t j = 0; j < w.rows.width(first); ++j)
        if (keys[job.kernels.place[j]] == value && --nth == 0) return first * LANES + j + 1;
    return w.rows.columns();
}

WgStatus select(WgSelect& call, const Table& table) {
    call.selected = call.changed = 0;
    if (call.rows == 0 || call.columns == 0) return WG_OK;
    const Job job(call, table);
    std::vector<Worker> workers;
    for (int i = 0; i < job.threads; ++i) workers.emplace_back(job);
    const WgStatus status = call.by_row ? by_row(job, workers) : by_matrix(job, workers);
    uint32_t largest = 0;
    for (const Worker& w : workers) {
        largest = std::max(largest, w.largest);
        call.selected += w.selected;
        call.changed += w.changed;
    }
    if (!job.spares()) call.selected = call.k * (call.by_row ? call.rows : 1);
    return status != WG_OK || largest >= uint32_t(INFINITE) ? WG_NOT_FINITE : WG_OK;
}

}  // namespace wg
