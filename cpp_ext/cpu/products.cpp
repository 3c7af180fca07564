// Products with the difference V = a − b of two stored matrices, which is formed block by block and never kept:
// inner = Vᵀ·x and outer = V·inner. Blocks are multiplied in float32 and added in double, in the order of the reference.
#include <algorithm>

#include "rows.h"
#include "threads.h"

namespace wg {
namespace {

constexpr int64_t STRIP = 512;  // columns that are opened at a time: their piece of V stays in the second cache

// Rows row.. and columns column..last of a − b, as pieces side by side.
void open(const WgProducts& call, const Products& kernels, int64_t row, int64_t column, int64_t last, float* v) {
    const int64_t entry = size_of(call.dtype);
    const auto at = [&](const WgMatrix& m) {
        return static_cast<const char*>(m.data) + (row * m.row_stride + column * m.column_stride) * entry;
    };
    kernels.difference({at(call.a), call.a.row_stride, call.a.column_stride},
                       {at(call.b), call.b.row_stride, call.b.column_stride},
                       std::min(PRODUCT_BLOCK, call.rows - row), last - column, v);
}

// A copy of rows of x, zeros behind the last.
void open_rows(const float* x, int64_t first, int64_t count, int64_t width, float* out) {
    const int64_t rows = std::min(PRODUCT_BLOCK, count - first);
    std::copy_n(x + first * width, rows * width, out);
    std::fill(out + rows * width, out + PRODUCT_BLOCK * width, 0.0f);
}

int64_t blocks(int64_t size) { return (size + PRODUCT_BLOCK - 1) / PRODUCT_BLOCK; }

// Totals of padded rows or columns are worked out too, and left behind.
struct Scratch {
    Lined<float> v, x;
    Lined<double> total;
    explicit Scratch(int64_t width)
        : v(size_t(PRODUCT_BLOCK * STRIP)),
          x(size_t(PRODUCT_BLOCK * width)),
          total(size_t(STRIP * width)) {}
};

void inner_strip(const WgProducts& call, const Products& kernels, int64_t strip, Scratch& s) {
    const int64_t first = strip * STRIP, last = std::min(first + STRIP, call.columns);
    std::fill(s.total.begin(), s.total.end(), 0.0);
    for (int64_t row = 0; row < call.rows; row += PRODUCT_BLOCK) {
        open_rows(call.x, row, call.rows, call.width, s.x.data());
        open(call, kernels, row, first, last, s.v.data());
        for (int64_t at = 0; at < last - first; at += PRODUCT_BLOCK)
            kernels.columns(s.v.data() + at * PRODUCT_BLOCK, s.x.data(), call.width, s.total.data() + at * call.width);
    }
    std::copy_n(s.total.data(), (last - first) * call.width, call.inner + first * call.width);
}

void outer_block(const WgProducts& call, const Products& kernels, int64_t block, const float* inner, Scratch& s) {
    const int64_t row = block * PRODUCT_BLOCK, rows = std::min(PRODUCT_BLOCK, call.rows - row);
    std::fill(s.total.begin(), s.total.end(), 0.0);
    for (int64_t first = 0; first < call.columns; first += STRIP) {
        const int64_t last = std::min(first + STRIP, call.columns);
        open(call, kernels, row, first, last, s.v.data());
        for (int64_t at = 0; at < last - first; at += PRODUCT_BLOCK)
            kernels.rows(s.v.data() + at * PRODUCT_BLOCK, inner + (first + at) * call.width, call.width,
                         s.total.data());
    }
    std::copy_n(s.total.data(), rows * call.width, call.outer + row * call.width);
}

}  // namespace

WgStatus products(WgProducts& call, const Table& table) {
    const Products& kernels = table.products[call.dtype];
    const int threads = std::max(call.threads, 1);
    std::vector<Scratch> scratch;
    for (int i = 0; i < threads; ++i) scratch.emplace_back(call.width);
    parallel(threads, (call.columns + STRIP - 1) / STRIP,
             [&](int64_t strip, int thread) { inner_strip(call, kernels, strip, scratch[size_t(thread)]); });
    Lined<float> inner(size_t(blocks(call.columns) * PRODUCT_BLOCK * call.width), 0.0f);
    std::transform(call.inner, call.inner + call.columns * call.width, inner.begin(), [](double m) { return float(m); });
    parallel(threads, blocks(call.rows), [&](int64_t block, int thread) {
        outer_block(call, kernels, block, inner.data(), scratch[size_t(thread)]);
    });
    return WG_OK;
}

}  // namespace wg
