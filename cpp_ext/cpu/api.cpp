// The C functions that Python calls: they choose the instruction set, check what would read out of bounds, and turn
// C++ exceptions into a status.
#include <new>

#include "kernels.h"

namespace wg {

WgStatus select(WgSelect& call, const Table& table);
WgStatus pair(WgPair& call, const Table& table);
WgStatus scale(WgScale& call, const Table& table);
WgStatus squares(WgSquares& call, const Table& table);
WgStatus products(WgProducts& call, const Table& table);
WgStatus key_rows(const int32_t* keys, int64_t rows, int64_t columns, int64_t k, uint8_t* mask, const Table& table);
WgStatus key_counts(const int32_t* keys, int64_t count, int32_t shift, int32_t first, int64_t bins, int64_t* counts);
WgStatus finite(const void* data, int64_t count, int32_t dtype, int threads, const Table& table);

const Table* table_of(int32_t isa) {
#if defined(__x86_64__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx512 && (isa == WG_AUTO || isa == WG_AVX512)) return &avx512_table;
    if (avx2 && (isa == WG_AUTO || isa == WG_AVX2)) return &avx2_table;
#endif
    return isa == WG_AUTO || isa == WG_PORTABLE ? &portable_table : nullptr;
}

namespace {

bool known(int32_t dtype) { return dtype == WG_F32 || dtype == WG_BF16 || dtype == WG_F16; }

template <class Work>
int32_t guarded(bool sound, int32_t isa, Work work) {
    const Table* table = table_of(isa);
    if (!sound || !table) return WG_BAD_CALL;
    try {
        return work(*table);
    } catch (const std::bad_alloc&) {
        return WG_NO_MEMORY;
    }
}

}  // namespace
}  // namespace wg

int32_t wg_abi() { return WG_ABI; }

int32_t wg_best_isa() { return wg::table_of(WG_AVX512) ? WG_AVX512 : wg::table_of(WG_AVX2) ? WG_AVX2 : WG_PORTABLE; }

int32_t wg_select(WgSelect* c) {
    const int64_t group = c->by_row ? c->columns : c->rows * c->columns;
    const bool sound = wg::known(c->dtype) && c->k >= 0 && c->k <= group && c->spare_k >= 0 && c->spare_k <= group;
    return wg::guarded(sound, c->isa, [&](const wg::Table& table) { return wg::select(*c, table); });
}

int32_t wg_pair(WgPair* c) {
    return wg::guarded(wg::known(c->dtype), c->isa, [&](const wg::Table& table) { return wg::pair(*c, table); });
}

int32_t wg_scale(WgScale* c) {
    return wg::guarded(wg::known(c->dtype), c->isa, [&](const wg::Table& table) { return wg::scale(*c, table); });
}

int32_t wg_squares(WgSquares* c) {
    return wg::guarded(wg::known(c->dtype), c->isa, [&](const wg::Table& table) { return wg::squares(*c, table); });
}

int32_t wg_products(WgProducts* c) {
    const bool sound = wg::known(c->dtype) && c->width >= 0 && c->width % 16 == 0;
    return wg::guarded(sound, c->isa, [&](const wg::Table& table) { return wg::products(*c, table); });
}

int32_t wg_finite(const void* data, int64_t count, int32_t dtype, int32_t threads, int32_t isa) {
    return wg::guarded(wg::known(dtype), isa,
                       [&](const wg::Table& table) { return wg::finite(data, count, dtype, threads, table); });
}

int32_t wg_key_rows(const int32_t* keys, int64_t rows, int64_t columns, int64_t k, uint8_t* mask, int32_t isa) {
    return wg::guarded(k >= 0 && k <= columns, isa, [&](const wg::Table& table) {
        return wg::key_rows(keys, rows, columns, k, mask, table);
    });
}

int32_t wg_key_counts(const int32_t* keys, int64_t count, int32_t shift, int32_t first, int64_t bins, int64_t* counts) {
    const bool sound = shift >= 0 && shift < 32 && bins >= 0;
    return wg::guarded(sound, WG_AUTO,
                       [&](const wg::Table&) { return wg::key_counts(keys, count, shift, first, bins, counts); });
}
