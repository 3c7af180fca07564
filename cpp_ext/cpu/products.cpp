// Products with the difference V = a − b of two stored matrices, which is formed piece by piece and never kept:
// inner = Vᵀ·x and outer = V·inner. Pieces are multiplied in float32 and added in double, in the order of the reference.
#include <algorithm>
#include <cmath>

#include "rows.h"
#include "threads.h"

namespace wg {
namespace {

constexpr int64_t AHEAD = 2;  // pieces between one that is worked on and one that is fetched

int64_t blocks(int64_t size, int64_t block = PRODUCT_BLOCK) { return (size + block - 1) / block; }

// Pieces of a and b. Those over the edge, or with columns apart in memory, are copied, zeros behind the last entry.
class Pieces {
public:
    Pieces(const WgProducts& call, int64_t rows) : call_(call), entry_(size_of(call.dtype)), rows_(rows) {}

    Sides open(int64_t row, int64_t column) {
        const bool inside = row + rows_ <= call_.rows && column + PRODUCT_BLOCK <= call_.columns;
        if (inside && call_.a.column_stride == 1 && call_.b.column_stride == 1) return where(row, column);
        copy(call_.a, row, column, copied_[0]);
        copy(call_.b, row, column, copied_[1]);
        return {copied_[0], copied_[1], PRODUCT_BLOCK * entry_, PRODUCT_BLOCK * entry_};
    }

    // Where a piece lies; over the edge it is only good for fetching.
    Sides where(int64_t row, int64_t column) const {
        return {at(call_.a, row, column), at(call_.b, row, column), call_.a.row_stride * entry_,
                call_.b.row_stride * entry_};
    }

private:
    const char* at(const WgMatrix& m, int64_t row, int64_t column) const {
        return static_cast<const char*>(m.data) + (row * m.row_stride + column * m.column_stride) * entry_;
    }

    void copy(const WgMatrix& m, int64_t row, int64_t column, char* out) const {
        std::memset(out, 0, sizeof copied_[0]);
        const int64_t rows = std::min(rows_, call_.rows - row), columns = std::min(PRODUCT_BLOCK, call_.columns - column);
        for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < columns; ++j)
                std::memcpy(out + (i * PRODUCT_BLOCK + j) * entry_, at(m, row + i, column + j), size_t(entry_));
    }

    const WgProducts& call_;
    const int64_t entry_, rows_;
    alignas(64) char copied_[2][PRODUCT_BLOCK * PRODUCT_BLOCK * 4];
};

void inner_strip(const WgProducts& call, const Products& kernels, int64_t strip, Lined<double>& total) {
    const int64_t first = strip * PRODUCT_STRIP, columns = std::min(PRODUCT_STRIP, call.columns - first);
    const int64_t across = blocks(columns), pieces = blocks(call.rows) * across;
    const auto row = [&](int64_t piece) { return piece / across * PRODUCT_BLOCK; };
    const auto column = [&](int64_t piece) { return first + piece % across * PRODUCT_BLOCK; };
    Pieces of(call, PRODUCT_BLOCK);
    std::fill(total.begin(), total.end(), 0.0);
    for (int64_t i = 0; i < pieces; ++i) {
        const int64_t next = std::min(i + AHEAD, pieces - 1);
        kernels.inner(of.open(row(i), column(i)), of.where(row(next), column(next)), call.x + row(i) * call.width,
                      call.width, total.data() + column(i) - first);
    }
    for (int64_t j = 0; j < columns; ++j)
        for (int64_t c = 0; c < call.width; ++c)
            call.inner[(first + j) * call.width + c] = total[size_t(c * PRODUCT_STRIP + j)];
}

void outer_block(const WgProducts& call, const Products& kernels, int64_t block, const float* inner,
                 Lined<double>& total) {
    const int64_t row = block * OUTER_ROWS, rows = std::min(OUTER_ROWS, call.rows - row), across = blocks(call.columns);
    Pieces of(call, OUTER_ROWS);
    std::fill_n(total.begin(), OUTER_ROWS * call.width, 0.0);
    for (int64_t i = 0; i < across; ++i)
        kernels.outer(of.open(row, i * PRODUCT_BLOCK), of.where(row, std::min(i + AHEAD, across - 1) * PRODUCT_BLOCK),
                      inner + i * PRODUCT_BLOCK * call.width, call.width, total.data());
    std::copy_n(total.data(), rows * call.width, call.outer + row * call.width);
}

// The power of two that brings the largest size to between 1/2 and 1, so that no product of it with V underflows.
int exponent_of(const double* values, int64_t count) {
    double most = 0;
    for (int64_t i = 0; i < count; ++i) {
        if (!std::isfinite(values[i])) return 0;
        most = std::max(most, std::abs(values[i]));
    }
    int exponent = 0;
    std::frexp(most, &exponent);
    return std::clamp(exponent, -1000, 1000);
}

}  // namespace

WgStatus products(WgProducts& call, const Table& table) {
    const Products& kernels = table.products[call.dtype];
    const int threads = std::max(call.threads, 1);
    std::vector<Lined<double>> totals(size_t(threads), Lined<double>(size_t(PRODUCT_STRIP * call.width)));
    parallel(threads, blocks(call.columns, PRODUCT_STRIP),
             [&](int64_t strip, int thread) { inner_strip(call, kernels, strip, totals[size_t(thread)]); });
    Lined<float> inner(size_t(blocks(call.columns) * PRODUCT_BLOCK * call.width), 0.0f);
    const int exponent = exponent_of(call.inner, call.columns * call.width);
    std::transform(call.inner, call.inner + call.columns * call.width, inner.begin(),
                   [&](double m) { return float(std::ldexp(m, -exponent)); });
    parallel(threads, blocks(call.rows, OUTER_ROWS),
             [&](int64_t block, int thread) { outer_block(call, kernels, block, inner.data(), totals[size_t(thread)]); });
    for (int64_t i = 0; i < call.rows * call.width; ++i) call.outer[i] = std::ldexp(call.outer[i], exponent);
    return WG_OK;
}

}  // namespace wg
