// Exactly k keys of the whole matrix: a sample from all rows brackets the edge, one reading pass counts what lies above
// the bracket and keeps what lies inside (about one in a hundred), the edge is found among those, one writing pass
// applies it. A bracket that misses, or holds too many, costs another pass, never a wrong entry.
#include "writer.h"

namespace wg {
namespace {

constexpr int64_t SMALL_MATRIX = 1 << 18;  // keys of a matrix that are all looked at
constexpr int64_t BINS = 4096;

struct Kept {
    int thread;
    int64_t begin, inside;
};

struct Counted {
    int64_t inside = 0, above = 0;
    bool kept = true;  // the keys inside are all in the stores
};

class MatrixSearch {
public:
    MatrixSearch(const Job& job, std::vector<Worker>& workers, const Columns& columns, int64_t k)
        : job_(job),
          workers_(workers),
          columns_(columns),
          norms_(columns.norms()),
          k_(k),
          leveled_(job.leveled().take && !job.call.aligned.data && columns.regular()),
          kept_(size_t(job.blocks)) {
        const int64_t most = job.entries() + SLACK, some = (int64_t(1) << 21) + job.entries() / 256;
        room_ = std::min(most, some) + SLACK;
    }

    WgStatus find(Edge& edge) {
        if (k_ == 0 || k_ == job_.entries()) {
            edge = {k_ ? 0 : NEVER, ALL};
            leveled_ = false;
            return WG_OK;
        }
        for (size_t i = 0; i < workers_.size(); ++i) stores_.emplace_back(new int32_t[size_t(room_)]);
        int32_t low = 1, high = INFINITE;
        if (job_.entries() > SMALL_MATRIX) guess(low, high);
        const Counted found = enclose(low, high);
        if (found.above >= k_) return WG_NOT_FINITE;
        const int64_t need = k_ - found.above;
        if (found.inside < need) {
            edge = {0, behind(0, need - found.inside, false)};
            return WG_OK;
        }
        const Span all{low, high, found.inside, 0};
        const Span s = high - low == 1 ? all : narrowed([&](int32_t v) { return reaching(v); }, all, need);
        edge = {s.low, s.at_low == need ? ALL : behind(s.low, need - s.at_high, found.kept)};
        return WG_OK;
    }

    // True when the edge may be applied by levels, and no key is NaN or infinite.
    bool leveled() const { return leveled_; }

private:
    static double jitter(uint64_t i) { return double((i * 0x9E3779B97F4A7C15u) >> 11) / 9007199254740992.0; }

    // A bracket from groups spread over all rows; packed rows cost more, so fewer of them are opened.
    void guess(int32_t& low, int32_t& high) {
        const int64_t groups = std::max<int64_t>(job_.call.columns / LANES, 1);
        const int64_t wanted = std::min(std::max<int64_t>(4096, job_.entries() / 8192), job_.call.rows * groups);
        const int64_t stride = job_.packed ? std::max<int64_t>(job_.blocks / 16, 1) : 1;
        const int64_t rows = std::max<int64_t>(job_.call.rows / stride, 1), each = (wanted + rows - 1) / rows;
        std::vector<int32_t> sample;
        sample.reserve(size_t((rows + stride * job_.block_rows) * std::min(each, groups) * LANES));
        for (int64_t block = 0; block < job_.blocks; block += stride) add_sample(block, each, groups, sample);
        const int64_t real = int64_t(sample.size()) / LANES * std::min<int64_t>(LANES, job_.call.columns);
        const double share = double(k_) / double(job_.entries()), centre = share * double(real);
        const auto found = [&](int32_t value) {
            return job_.table.reaching(sample.data(), int64_t(sample.size()), value);
        };
        low = high = 0;
        bracket(found, real, {centre, 6 * std::sqrt(centre * (1 - share)) + 6}, low, high);
    }

    void add_sample(int64_t block, int64_t each, int64_t groups, std::vector<int32_t>& sample) {
        const int64_t take = std::min(each, groups);  // a row shorter than a group has one, its tail
        std::vector<int64_t> which(static_cast<size_t>(take));
        Worker& w = workers_[0];
        each_rows(job_, w, block, [&](int64_t row) {
            for (int r = 0; r < w.rows.count(); ++r) {
                for (int64_t i = 0; i < take; ++i)
                    which[size_t(i)] =
                        int64_t((double(i) + jitter(uint64_t((row + r) * take + i))) * double(groups) / double(take));
                sample.resize(sample.size() + size_t(take * LANES));
                w.rows.sample(r, norms_, which.data(), take, sample.data() + sample.size() - take * LANES);
            }
        });
    }

    // Count over the whole matrix until low <= edge < high and the keys inside are few enough to keep.
    Counted enclose(int32_t& low, int32_t& high) {
        for (;;) {
            const Counted found = scan(low, high);
            if (found.above >= k_ && high < INFINITE)
                low = high, high = INFINITE;
            else if (found.above + found.inside < k_ && low > 1)
                high = low, low = 1;
            else if (found.above >= k_ || found.above + found.inside < k_ || found.kept || high - low == 1)
                return found;
            else
                bin(low, high, k_ - found.above);
        }
    }

    Counted scan(int32_t low, int32_t high) {
        std::vector<Tally> tallies(workers_.size());
        Lined<uint16_t> lows, highs;
        if (leveled_) lows = columns_.levels(job_.leveled(), low), highs = columns_.levels(job_.leveled(), high);
        each_block([&](int64_t block, int thread, Worker& w) {
            Tally& t = tallies[size_t(thread)];
            kept_[size_t(block)] = {thread, t.used, 0};
            each_rows(job_, w, block, [&](int64_t) {
                Band bands[ROWS];
                for (int r = 0; r < w.rows.count(); ++r) bands[r] = w.band(r, low, high);
                if (leveled_)
                    w.rows.collect_leveled(norms_, lows.data(), highs.data(), bands, t.largest);
                else
                    w.rows.collect(norms_, bands);
                for (int r = 0; r < w.rows.count(); ++r) keep(bands[r], thread, t, kept_[size_t(block)]);
            });
        });
        if (leveled_ && may_overflow(tallies)) {
            leveled_ = false;
            return scan(low, high);
        }
        return total(tallies);
    }

    struct Tally {
        int64_t used = 0, above = 0;
        uint32_t largest = 0;  // magnitude
        bool all_kept = true;
    };

    void keep(const Band& band, int thread, Tally& t, Kept& here) {
        const bool fits = t.used + band.inside <= room_;
        if (fits) {
            std::copy_n(band.out, band.inside, stores_[size_t(thread)].get() + t.used);
            t.used += band.inside;
        }
        t.all_kept &= fits;
        t.above += band.above;
        here.inside += band.inside;
    }

    // NaN, infinity, or a finite weight so large that its key may be infinite: the keys themselves have to tell.
    bool may_overflow(const std::vector<Tally>& tallies) const {
        uint16_t limit;
        const float most = columns_.most();
        job_.leveled().levels(&most, 1, INFINITE, &limit);
        return std::any_of(tallies.begin(), tallies.end(), [&](const Tally& t) { return t.largest >= limit; });
    }

    Counted total(const std::vector<Tally>& tallies) {
        Counted all;
        used_.clear();
        for (const Tally& t : tallies) {
            all.above += t.above;
            all.kept &= t.all_kept;
            used_.push_back(t.used);
        }
        for (const Kept& block : kept_) all.inside += block.inside;
        return all;
    }

    // Too many keys between low and high: count them in bins and keep the bin in which the edge lies.
    void bin(int32_t& low, int32_t& high, int64_t need) {
        int shift = 0;
        while ((int64_t(high) - low) >> shift >= BINS) ++shift;
        std::vector<std::vector<int64_t>> bins(workers_.size(), std::vector<int64_t>(size_t(BINS), 0));
        each_block([&](int64_t block, int thread, Worker& w) {
            int64_t* mine = bins[size_t(thread)].data();
            each_rows(job_, w, block, [&](int64_t) {
                Band bands[ROWS];
                for (int r = 0; r < w.rows.count(); ++r) bands[r] = w.band(r, low, high);
                w.rows.collect(norms_, bands);
                for (int r = 0; r < w.rows.count(); ++r)
                    for (int64_t i = 0; i < bands[r].inside; ++i) ++mine[(bands[r].out[i] - low) >> shift];
            });
        });
        int64_t index = BINS;
        for (int64_t reached = 0; reached < need;) {
            --index;
            for (const auto& each : bins) reached += each[size_t(index)];
        }
        high = int32_t(std::min(int64_t(high), low + ((index + 1) << shift)));
        low = int32_t(low + (index << shift));
    }

    template <class Body>
    void each_block(Body body) {
        parallel(job_.threads, job_.blocks,
                 [&](int64_t block, int thread) { body(block, thread, workers_[size_t(thread)]); });
    }

    int64_t reaching(int32_t value) const {
        int64_t found = 0;
        for (size_t i = 0; i < stores_.size(); ++i) found += job_.table.reaching(stores_[i].get(), used_[i], value);
        return found;
    }

    // The row-major index behind the nth key that equals value.
    int64_t behind(int32_t value, int64_t nth, bool kept) {
        std::vector<int64_t> equal(size_t(job_.blocks), 0);
        if (kept) {
            for (size_t b = 0; b < equal.size(); ++b) {
                const int32_t* keys = stores_[size_t(kept_[b].thread)].get() + kept_[b].begin;
                equal[b] = job_.table.reaching(keys, kept_[b].inside, value) -
                           job_.table.reaching(keys, kept_[b].inside, value + 1);
            }
        } else {
            each_block([&](int64_t block, int, Worker& w) {
                each_rows(job_, w, block, [&](int64_t) {
                    for (int r = 0; r < w.rows.count(); ++r)
                        equal[size_t(block)] += equal_in(w, r, norms_, 0, w.rows.groups(), value);
                });
            });
        }
        for (int64_t block = 0; block < job_.blocks; nth -= equal[size_t(block++)])
            if (equal[size_t(block)] >= nth) return behind_in(block, value, nth);
        return ALL;
    }

    int64_t behind_in(int64_t block, int32_t value, int64_t nth) {
        Worker& w = workers_[0];
        int64_t index = ALL;
        each_rows(job_, w, block, [&](int64_t row) {
            for (int r = 0; r < w.rows.count() && index == ALL; ++r) {
                const int64_t found = equal_in(w, r, norms_, 0, w.rows.groups(), value);
                if (found >= nth) index = (row + r) * job_.call.columns + behind_nth(job_, w, r, norms_, value, nth);
                nth -= found;
            }
        });
        return index;
    }

    const Job& job_;
    std::vector<Worker>& workers_;
    const Columns& columns_;
    const float* norms_;
    const int64_t k_;
    bool leveled_;
    int64_t room_;
    std::vector<Kept> kept_;
    std::vector<int64_t> used_;
    std::vector<std::unique_ptr<int32_t[]>> stores_;
};

// The levels of an edge in each row: one set before the cut, one behind it, and a mixed one for the row it lies in.
class EdgeLevels {
public:
    EdgeLevels(const Job& job, const Columns& columns, const Edge& edge) : width_(job.call.columns), cut_(edge.cut) {
        before_ = columns.levels(job.leveled(), edge.value);
        if (cut_ == ALL) return;
        behind_ = columns.levels(job.leveled(), edge.value + 1);
        mixed_ = behind_;
        std::copy_n(before_.begin(), cut_ % width_, mixed_.begin());
    }

    const uint16_t* of(int64_t row) const {
        const int64_t base = row * width_;
        return cut_ == ALL || base + width_ <= cut_ ? before_.data() : base >= cut_ ? behind_.data() : mixed_.data();
    }

private:
    const int64_t width_, cut_;
    Lined<uint16_t> before_, behind_, mixed_;
};

template <class Body>
void write(const Job& job, std::vector<Worker>& workers, Body body) {
    parallel(job.threads, job.blocks, [&](int64_t block, int thread) {
        Worker& w = workers[size_t(thread)];
        each_rows(job, w, block, [&](int64_t row) { body(w, row); });
        w.weights.put_back();
    });
}

// An edge in terms of the row's own columns.
Edge in_row(const Edge& edge, int64_t row, int64_t columns) {
    if (edge.cut == ALL || edge.cut >= (row + 1) * columns) return {edge.value, ALL};
    if (edge.cut <= row * columns) return {edge.value + 1, ALL};
    return {edge.value, edge.cut - row * columns};
}

void write_keyed(const Job& job, std::vector<Worker>& workers, const Edge& take, const Edge& spare) {
    const Writer writer(job, take.value == 0);
    write(job, workers, [&](Worker& w, int64_t row) {
        Edge takes[ROWS], spares[ROWS];
        for (int r = 0; r < w.rows.count(); ++r) {
            takes[r] = in_row(take, row + r, job.call.columns);
            spares[r] = in_row(spare, row + r, job.call.columns);
        }
        writer.rows(w, row, takes, spares);
    });
}

void write_leveled(const Job& job, std::vector<Worker>& workers, const Edge& take, const Edge& spare) {
    const Writer writer(job);
    const EdgeLevels low(job, job.norms, take);
    std::unique_ptr<EdgeLevels> high;
    if (job.spares()) high.reset(new EdgeLevels(job, job.spare_norms, spare));
    write(job, workers, [&](Worker& w, int64_t row) {
        const auto at = [&](int r) { return low.of(row + r); };
        const auto spared = [&](int r) { return high ? high->of(row + r) : nullptr; };
        for (int r = 0, next; r < w.rows.count(); r = next) {
            for (next = r + 1; next < w.rows.count() && at(next) == at(r) && spared(next) == spared(r);) ++next;
            writer.rows_leveled(w, row, r, next - r, at(r), spared(r));
        }
        w.rows.put_tails_back();
    });
}

}  // namespace

WgStatus by_matrix(const Job& job, std::vector<Worker>& workers) {
    Edge take, spare;
    MatrixSearch search(job, workers, job.norms, job.call.k);
    if (search.find(take) != WG_OK) return WG_NOT_FINITE;
    bool leveled = search.leveled() && take.value > 0;
    if (job.spares()) {
        MatrixSearch other(job, workers, job.spare_norms, job.call.spare_k);
        if (other.find(spare) != WG_OK) return WG_NOT_FINITE;
        leveled = leveled && other.leveled() && spare.value > 0;
    }
    if (leveled) {
        write_leveled(job, workers, take, spare);
        return WG_OK;
    }
    write_keyed(job, workers, take, spare);
    if (!job.spares() && take.value != 0) workers[0].changed += job.call.k;
    return WG_OK;
}

}  // namespace wg
