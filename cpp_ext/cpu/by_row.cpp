// Exactly k keys of every row: a few hundred sampled keys bracket the row's edge, one pass over the row (which is in
// the cache) counts what lies above the bracket and collects what lies inside, the edge is found among those, a second
// pass writes. A bracket that misses costs another pass, never a wrong entry.
#include "writer.h"

namespace wg {
namespace {

constexpr int64_t SMALL_ROW = 1024;  // keys of a row that are all looked at
constexpr int64_t ROW_SAMPLE = 16;   // groups of a row that guess its edge

class RowSearch {
public:
    RowSearch(const Job& job, const Columns& columns, int64_t k) : job_(job), norms_(columns.norms()), k_(k) {
        const int64_t n = job.call.columns, whole = n / LANES,
                      groups = n >= SMALL_ROW ? std::min(whole, ROW_SAMPLE) : 0;
        for (int64_t i = 0; i < groups; ++i) which_[i] = (2 * i + 1) * whole / (2 * groups);
        sampled_ = groups * LANES;
        const double share = double(k) / double(n);
        window_.centre = share * double(sampled_);
        least_ = window_.spread = 3 * std::sqrt(window_.centre * (1 - share)) + 2;
    }

    // The edges of all open rows.
    WgStatus find(const Worker& w, Edge* edges) {
        const int count = w.rows.count();
        if (k_ == 0 || k_ == w.rows.columns()) {
            std::fill(edges, edges + count, Edge{k_ ? 0 : NEVER, ALL});
            return WG_OK;
        }
        Band bands[ROWS];
        for (int r = 0; r < count; ++r) {
            bands[r] = w.band(r, 1, INFINITE);
            if (sampled_) guess(w, r, bands[r]);
        }
        w.rows.collect(norms_, bands);
        for (int r = 0; r < count; ++r) {
            enclose(w, r, bands[r]);
            if (bands[r].above >= k_) return WG_NOT_FINITE;
            edges[r] = edge_of(w, r, bands[r]);
            if (sampled_) learn(r, edges[r].value);
        }
        return WG_OK;
    }

private:
    auto sampled(int row) const {
        return [this, row](int32_t value) { return job_.table.reaching(samples_[row], sampled_, value); };
    }

    void guess(const Worker& w, int row, Band& band) {
        w.rows.sample(row, norms_, which_, sampled_ / LANES, samples_[row]);
        int32_t low = low_, high = high_;
        bracket(sampled(row), sampled_, window_, low, high);
        low_ = low > 1 ? low : 0, high_ = high < INFINITE ? high : 0;
        band.low = low, band.high = high;
    }

    // Collect again until low <= edge < high, or the edge is key 0, the only one below low = 1.
    void enclose(const Worker& w, int row, Band& band) {
        for (;;) {
            if (band.above >= k_ && band.high < INFINITE)
                band = w.band(row, band.high, INFINITE);
            else if (band.above + band.inside < k_ && band.low > 1)
                band = w.band(row, 1, band.low);
            else
                return;
            window_.spread *= 1.5;
            w.rows.collect(row, norms_, 0, w.rows.groups(), band);
        }
    }

    Edge edge_of(const Worker& w, int row, const Band& band) const {
        const int64_t need = k_ - band.above;
        if (band.inside < need) return {0, behind_nth(job_, w, row, norms_, 0, need - band.inside)};
        const auto reaching = [&](int32_t value) { return job_.table.reaching(band.out, band.inside, value); };
        const Span s = narrowed(reaching, {band.low, band.high, band.inside, 0}, need);
        return {s.low, s.at_low == need ? ALL : behind_nth(job_, w, row, norms_, s.low, need - s.at_high)};
    }

    // The sampled columns are the same in every row, so where the edge fell in this row's sample says where it will
    // fall in the next ones': norms of very different size move all rows alike.
    void learn(int row, int32_t edge) {
        const double off = double(sampled(row)(edge)) - window_.centre;
        window_.centre += off / 8;
        window_.spread = std::max(least_, window_.spread * (std::abs(off) > window_.spread / 2 ? 1.0 : 0.98));
    }

    const Job& job_;
    const float* norms_;
    const int64_t k_;
    int64_t sampled_, which_[ROW_SAMPLE];
    Window window_;
    double least_;
    int32_t low_ = 0, high_ = 0;  // the last bracket
    int32_t samples_[ROWS][ROW_SAMPLE * LANES];
};

// The searches of one thread: they learn from row to row.
struct Searches {
    RowSearch take, spare;
};

}  // namespace

WgStatus by_row(const Job& job, std::vector<Worker>& workers) {
    const Searches fresh{{job, job.norms, job.call.k}, {job, job.spare_norms, job.call.spare_k}};
    std::vector<Searches> searches(workers.size(), fresh);
    const Writer writer(job);
    std::atomic<bool> finite{true};
    parallel(job.threads, job.blocks, [&](int64_t block, int thread) {
        Worker& w = workers[size_t(thread)];
        Searches& search = searches[size_t(thread)];
        each_rows(job, w, block, [&](int64_t r) {
            Edge take[ROWS], spare[ROWS];
            if (search.take.find(w, take) != WG_OK) finite = false;
            if (job.spares() && search.spare.find(w, spare) != WG_OK) finite = false;
            if (!finite) return;
            writer.rows(w, r, take, spare);
            for (int i = 0; !job.spares() && i < w.rows.count(); ++i) w.changed += take[i].value ? job.call.k : 0;
        });
        w.weights.put_back();
    });
    return finite ? WG_OK : WG_NOT_FINITE;
}

}  // namespace wg
