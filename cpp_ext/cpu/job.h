// One call of select: what is given, how it is cut into blocks, and what each thread has to itself.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "rows.h"
#include "threads.h"
#include "threshold.h"

namespace wg {

constexpr int64_t BLOCK = 1 << 17;  // entries of a block, about; a thread takes one at a time
constexpr int64_t STREAM = 512;     // bytes ahead of a pass over the matrix

// One call: the matrices, the kernels for their dtype, and the two sets of norms.
struct Job {
    WgSelect& call;
    const Table& table;
    const Scored& kernels;
    Columns norms, spare_norms;
    int64_t entry, block_rows, blocks;
    int threads;
    bool packed;  // columns are not neighbours in memory: blocks of rows are copied
    Ahead ahead;

    Job(WgSelect& c, const Table& t)
        : call(c),
          table(t),
          kernels(t.scored[c.dtype][c.aligned.data != nullptr]),
          norms(kernels, c.columns, c.norms),
          spare_norms(kernels, c.spare_norms ? c.columns : 0, c.spare_norms),
          entry(size_of(c.dtype)) {
        packed = c.weights.column_stride != 1 || (c.aligned.data && c.aligned.column_stride != 1);
        const int64_t least = packed ? 32 : ROWS;
        block_rows = std::min(std::max(BLOCK / c.columns / ROWS * ROWS, least), c.rows);
        blocks = (c.rows + block_rows - 1) / block_rows;
        threads = int(std::clamp<int64_t>(c.rows * c.columns / BLOCK, 1, std::max(c.threads, 1)));
        // By row, rows are in the cache when they are searched: they were fetched while the ones before were written.
        if (!packed) ahead = c.by_row ? Ahead{0, ROWS * c.weights.row_stride * entry} : Ahead{STREAM, STREAM};
    }

    const Leveled& leveled() const { return table.leveled[call.dtype]; }

    int64_t entries() const { return call.rows * call.columns; }
    bool spares() const { return call.spare_norms != nullptr; }
    bool measures() const { return call.weight != nullptr; }
    int64_t first(int64_t block) const { return block * block_rows; }
    int64_t last(int64_t block) const { return std::min(first(block) + block_rows, call.rows); }
};

// What a thread has to itself.
struct Worker {
    Block weights, aligned;
    Rows rows;
    int64_t room;
    std::unique_ptr<int32_t[]> memory;  // of ROWS times `room` keys
    int64_t selected = 0, changed = 0;
    uint32_t largest = 0;

    explicit Worker(const Job& job)
        : weights(job.call.weights, job.call.columns, job.entry, job.block_rows),
          aligned(job.call.aligned, job.call.columns, job.entry, job.block_rows),
          rows(job.kernels, job.leveled(), job.call.columns, job.entry, job.ahead),
          room(job.call.columns + 2 * SLACK),
          memory(new int32_t[size_t(ROWS * room)]) {}

    // All keys of a row.
    int32_t* keys(int row) const { return memory.get() + row * room; }

    // A search of keys in [low, high) whose results go to the row's memory.
    Band band(int row, int32_t low, int32_t high) const { return {low, high, keys(row), 0, 0}; }
};

// body(worker, first row, thread) for all rows of a block, up to ROWS open at a time.
template <class Body>
void each_rows(const Job& job, Worker& w, int64_t block, Body body) {
    w.weights.open(job.first(block), job.last(block));
    w.aligned.open(job.first(block), job.last(block));
    for (int64_t r = job.first(block); r < job.last(block); r += ROWS) {
        w.rows.open(w.weights, w.aligned, r, int(std::min<int64_t>(ROWS, job.last(block) - r)));
        body(r);
    }
}

// How many keys in groups first..last of one of the worker's rows equal value.
int64_t equal_in(const Worker& w, int row, const float* norms, int64_t first, int64_t last, int32_t value);

// The column behind the nth key of the row that equals value.
int64_t behind_nth(const Job& job, const Worker& w, int row, const float* norms, int32_t value, int64_t nth);

WgStatus by_row(const Job& job, std::vector<Worker>& workers);
WgStatus by_matrix(const Job& job, std::vector<Worker>& workers);

}  // namespace wg
