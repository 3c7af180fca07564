// Overwrites the entries of rows that their edges take, and stores the rows' sums of squares.
#pragma once

#include "job.h"

namespace wg {

class Writer {
public:
    // `counting`: all rows count what they change, as rows with the edge 0 always do.
    explicit Writer(const Job& job, bool counting = false) : job_(job), careful_(counting || job.spares()) {
        const double taken = double(job.call.k) * double(job.call.by_row ? job.call.rows : 1) / double(job.entries());
        always_ = taken * LANES > 0.3;
    }

    // The worker's rows, the first of which is row `index` of the matrix. Edges of each row; their cuts count columns.
    void rows(Worker& w, int64_t index, const Edge* take, const Edge* spare) const {
        int plain = 0;  // rows in a run that one call can take: neither a cut nor the edge 0
        for (int r = 0; r < w.rows.count(); ++r) {
            const bool careful = careful_ || take[r].value == 0, alone = careful || take[r].cut != ALL;
            if (!alone) ++plain;
            if (alone || r + 1 == w.rows.count()) {
                const int first = r + !alone - plain;
                if (plain) run(w, index, first, plain, take, spare, false);
                if (alone) run(w, index, r, 1, take, spare, careful);
                plain = 0;
            }
        }
        w.rows.put_tails_back();
    }

    // The same by levels: a key above 0 is that of an entry which is not 0, so what is selected is changed.
    void rows_leveled(Worker& w, int64_t index, int first, int count, const uint16_t* low, const uint16_t* high) const {
        Taken taken[ROWS];
        clear(taken, count);
        w.rows.take_leveled(first, count, low, high, always_, job_.measures(), taken);
        for (int r = 0; r < count; ++r) {
            w.selected += taken[r].selected;
            w.changed += taken[r].selected;
            store(taken[r].sums, index + first + r);
        }
    }

private:
    void run(Worker& w, int64_t index, int first, int count, const Edge* take, const Edge* spare, bool careful) const {
        Taken taken[ROWS];
        Edges laid[ROWS];
        clear(taken, count);
        const auto kernel = careful           ? job_.kernels.take_careful
                            : job_.measures() ? job_.kernels.take_measured
                                              : job_.kernels.take;
        const float* norms = job_.norms.norms();
        for (int64_t group = 0, stop; group < w.rows.groups(); group = stop) {
            stop = same_until(w.rows, group, take[first].cut, spare[first].cut);
            for (int r = 0; r < count; ++r) lay(w.rows, group, take[first + r], spare[first + r], laid[r]);
            const float* other = job_.spares() ? job_.spare_norms.norms() : norms;
            kernel(w.rows.writing(first, count, group, stop, norms, other), laid, always_, taken);
        }
        for (int r = 0; r < count; ++r) {
            w.largest = std::max(w.largest, taken[r].largest);
            w.selected += taken[r].selected;
            w.changed += careful ? taken[r].changed : 0;
            store(taken[r].sums, index + first + r);
        }
    }

    void clear(Taken* taken, int count) const {
        std::memset(static_cast<void*>(taken), 0, size_t(count) * sizeof(Taken));
    }

    // The first group behind `group` to which other edges apply: where a cut lies, behind it, and the tail.
    static int64_t same_until(const Rows& rows, int64_t group, int64_t cut, int64_t spare_cut) {
        int64_t stop = group < rows.whole() ? rows.whole() : rows.groups();
        for (int64_t c : {cut, spare_cut}) {
            const int64_t column = std::clamp<int64_t>(c, 0, rows.columns());
            for (int64_t edge : {column / LANES, column / LANES + 1})
                if (edge > group && edge < stop) stop = edge;
        }
        return stop;
    }

    void lay(const Rows& rows, int64_t group, const Edge& take, const Edge& spare, Edges& laid) const {
        for (int64_t j = 0; j < LANES; ++j) {
            const int64_t column = group * LANES + j;
            const int place = job_.kernels.place[j];
            laid.take[place] = j >= rows.width(group) ? NEVER : take.value + (column >= take.cut);
            laid.spare[place] = spare.value + (column >= spare.cut);
        }
    }

    // Lanes are folded by halves, as reference.row_sums does.
    void store(const Sums& sums, int64_t index) const {
        double* const to[SUMS] = {job_.call.weight, job_.call.change, job_.call.before, job_.call.after};
        for (int s = 0; s < SUMS; ++s)
            if (to[s]) to[s][index] = folded(sums.lane[s], job_.kernels.place);
    }

    const Job& job_;
    const bool careful_;
    bool always_;
};

}  // namespace wg
