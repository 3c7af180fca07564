// Rows of a matrix as the kernels want them: contiguous, cut into whole groups and a tail, norms laid out.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "kernels.h"

namespace wg {

// Memory on cache lines: a vector load that straddles two costs twice.
template <class T>
struct OnLines {
    using value_type = T;
    OnLines() = default;
    template <class U>
    OnLines(const OnLines<U>&) {}
    T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(64))); }
    void deallocate(T* memory, size_t) { ::operator delete(memory, std::align_val_t(64)); }
    bool operator==(const OnLines&) const { return true; }
    bool operator!=(const OnLines&) const { return false; }
};

template <class T>
using Lined = std::vector<T, OnLines<T>>;

// Laid-out lanes added in the order of reference.row_sums: by halves.
inline double folded(const double* laid, const uint8_t* place) {
    double lane[LANES];
    for (int j = 0; j < LANES; ++j) lane[j] = laid[place[j]];
    for (int width = LANES / 2; width; width /= 2)
        for (int j = 0; j < width; ++j) lane[j] += lane[j + width];
    return lane[0];
}

// The columns of a matrix with one set of norms, laid out for the kernels of one table; padding has norm 0 and key 0.
class Columns {
public:
    Columns(const Scored& kernels, int64_t columns, const float* norms)
        : plain_(size_t(columns), 1.0f), laid_(size_t((columns + LANES - 1) / LANES * LANES), 0.0f) {
        if (norms) std::memcpy(plain_.data(), norms, size_t(columns) * sizeof(float));
        for (int64_t j = 0; j < columns; ++j)
            laid_[size_t(j / LANES * LANES + kernels.place[j % LANES])] = plain_[size_t(j)];
    }

    const float* norms() const { return laid_.data(); }

    // True when all norms are finite and none is negative (or -0).
    bool regular() const {
        return std::all_of(plain_.begin(), plain_.end(), [](float norm) {
            uint32_t bits;
            std::memcpy(&bits, &norm, sizeof bits);
            return bits < uint32_t(INFINITE);
        });
    }

    float most() const { return *std::max_element(plain_.begin(), plain_.end()); }

    // Padded to whole groups with a level that no padding reaches.
    Lined<uint16_t> levels(const Leveled& kernels, int32_t value) const {
        Lined<uint16_t> level(laid_.size(), 0x7FFF);
        kernels.levels(plain_.data(), int64_t(plain_.size()), value, level.data());
        return level;
    }

private:
    std::vector<float> plain_;
    Lined<float> laid_;
};

// A block of consecutive rows. Rows whose columns are not neighbours in memory are copied into a scratch buffer, and
// copied back by `put_back`.
class Block {
public:
    Block(const WgMatrix& matrix, int64_t columns, int64_t entry, int64_t most_rows)
        : matrix_(matrix), columns_(columns), entry_(entry) {
        if (matrix.data && matrix.column_stride != 1) scratch_.reset(new char[size_t(most_rows * columns * entry)]);
    }

    void open(int64_t first, int64_t last) {
        first_ = first, last_ = last;
        if (scratch_) move<true>();
    }

    void put_back() {
        if (scratch_) move<false>();
    }

    // Null when there is no such matrix.
    char* row(int64_t index) const {
        if (!matrix_.data) return nullptr;
        if (scratch_) return scratch_.get() + (index - first_) * columns_ * entry_;
        return static_cast<char*>(matrix_.data) + index * matrix_.row_stride * entry_;
    }

    // Bytes from a row to the next.
    int64_t stride() const { return (scratch_ ? columns_ : matrix_.row_stride) * entry_; }

private:
    template <bool IN>
    void move() {
        if (entry_ == 4) move_as<IN, uint32_t>();
        if (entry_ == 2) move_as<IN, uint16_t>();
    }

    template <bool IN, class Entry>
    void move_as() {
        const int64_t rows = last_ - first_;
        for (int64_t j = 0; j < columns_; ++j) {
            char* there =
                static_cast<char*>(matrix_.data) + (first_ * matrix_.row_stride + j * matrix_.column_stride) * entry_;
            char* here = scratch_.get() + j * entry_;
            for (int64_t i = 0; i < rows; ++i, there += matrix_.row_stride * entry_, here += columns_ * entry_)
                std::memcpy(IN ? here : there, IN ? there : here, sizeof(Entry));
        }
    }

    WgMatrix matrix_;
    int64_t columns_, entry_, first_ = 0, last_ = 0;
    std::unique_ptr<char[]> scratch_;
};

// How far ahead (bytes) rows are fetched while they are searched and while they are written; 0 for not at all.
struct Ahead {
    int64_t search = 0, write = 0;
};

// Up to ROWS neighbouring rows behind the kernels. Columns behind the last whole group are worked on in padded copies.
class Rows {
public:
    Rows(const Scored& kernels, const Leveled& leveled, int64_t columns, int64_t entry, Ahead ahead)
        : kernels_(kernels),
          leveled_(leveled),
          columns_(columns),
          whole_(columns / LANES),
          tail_(columns % LANES),
          entry_(entry),
          ahead_(ahead) {}

    // Rows first..first+count of the blocks; `aligned` may be a block of no matrix.
    void open(const Block& weights, const Block& aligned, int64_t first, int count) {
        count_ = count;
        weights_ = weights.row(first), stride_ = weights.stride();
        aligned_ = aligned.row(first), aligned_stride_ = aligned.stride();
        const int64_t at = whole_ * LANES * entry_;
        for (int r = 0; tail_ && r < count; ++r) {
            std::memcpy(tail_weights_[r], weights_ + r * stride_ + at, size_t(tail_ * entry_));
            if (aligned_) std::memcpy(tail_aligned_[r], aligned_ + r * aligned_stride_ + at, size_t(tail_ * entry_));
        }
    }

    int count() const { return count_; }
    int64_t groups() const { return whole_ + (tail_ != 0); }
    int64_t whole() const { return whole_; }
    int64_t columns() const { return columns_; }
    int64_t width(int64_t group) const { return group < whole_ ? LANES : tail_; }

    // Keys of groups of one row, all of them whole ones, or the tail alone.
    void sample(int row, const float* norms, const int64_t* which, int64_t count, int32_t* out) const {
        const int64_t tail = 0;
        if (whole_)
            kernels_.sample(parts(row, 1, 0, whole_, norms, 0), which, count, out);
        else
            kernels_.sample(parts(row, 1, 0, 1, norms, 0), &tail, 1, out);
    }

    // Keys of one group of one row.
    void keys(int row, const float* norms, int64_t group, int32_t* out) const {
        const int64_t only = 0;
        kernels_.sample(parts(row, 1, group, group + 1, norms, 0), &only, 1, out);
    }

    // All rows, one band each.
    void collect(const float* norms, Band* bands) const {
        if (whole_) kernels_.collect(parts(0, count_, 0, whole_, norms, ahead_.search), bands);
        if (tail_) kernels_.collect(parts(0, count_, whole_, whole_ + 1, norms, 0), bands);
    }

    // Groups first..last of one row.
    void collect(int row, const float* norms, int64_t first, int64_t last, Band& band) const {
        if (first < whole_ && first < last)
            kernels_.collect(parts(row, 1, first, std::min(last, whole_), norms, 0), &band);
        if (last > whole_) kernels_.collect(parts(row, 1, whole_, last, norms, 0), &band);
    }

    void collect_leveled(const float* norms, const uint16_t* low, const uint16_t* high, Band* bands,
                         uint32_t& largest) const {
        const int64_t at = whole_ * LANES;
        if (whole_) leveled_.collect(parts(0, count_, 0, whole_, norms, ahead_.search), low, high, bands, largest);
        if (tail_)
            leveled_.collect(parts(0, count_, whole_, whole_ + 1, norms, 0), low + at, high + at, bands, largest);
    }

    // Rows first..first+count; their tails are put back by put_tails_back.
    void take_leveled(int first, int count, const uint16_t* low, const uint16_t* high, bool always, bool measured,
                      Taken* taken) {
        const auto take = measured ? leveled_.take_measured : leveled_.take;
        const int64_t at = whole_ * LANES;
        if (whole_) take(parts(first, count, 0, whole_, nullptr, ahead_.write), low, high, always, taken);
        if (tail_)
            take(parts(first, count, whole_, whole_ + 1, nullptr, 0), low + at, high ? high + at : nullptr, always,
                 taken);
    }

    // Groups first..last to write; the tail is a call of its own.
    Groups writing(int row, int rows, int64_t first, int64_t last, const float* norms, const float* spare) const {
        Groups g = parts(row, rows, first, last, norms, ahead_.write);
        g.spare_norms = spare + first * LANES;
        return g;
    }

    void put_tails_back() {
        for (int r = 0; tail_ && r < count_; ++r)
            std::memcpy(weights_ + r * stride_ + whole_ * LANES * entry_, tail_weights_[r], size_t(tail_ * entry_));
    }

private:
    Groups parts(int row, int rows, int64_t first, int64_t last, const float* norms, int64_t ahead) const {
        const int64_t at = first * LANES * entry_, pad = sizeof tail_weights_[0];
        const float* of_group = norms ? norms + first * LANES : nullptr;
        if (first >= whole_)
            return {const_cast<char*>(tail_weights_[row]),
                    aligned_ ? tail_aligned_[row] : nullptr,
                    pad,
                    pad,
                    of_group,
                    nullptr,
                    1,
                    0,
                    rows};
        return {weights_ + row * stride_ + at,
                aligned_ ? aligned_ + row * aligned_stride_ + at : nullptr,
                stride_,
                aligned_stride_,
                of_group,
                nullptr,
                last - first,
                ahead,
                rows};
    }

    const Scored& kernels_;
    const Leveled& leveled_;
    const int64_t columns_, whole_, tail_, entry_;
    const Ahead ahead_;
    int count_ = 0;
    char* weights_ = nullptr;
    const char* aligned_ = nullptr;
    int64_t stride_ = 0, aligned_stride_ = 0;
    char tail_weights_[ROWS][LANES * 4] = {}, tail_aligned_[ROWS][LANES * 4] = {};
};

}  // namespace wg
