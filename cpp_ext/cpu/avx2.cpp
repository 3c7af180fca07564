// The inner loops for AVX2: the plain ones, vectorised by the compiler, with a table-driven compress.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define WG_TARGET __attribute__((target("avx2,fma,f16c,popcnt,bmi,bmi2")))

namespace wg {
namespace {

// lane[mask] lists the set bits of mask from the lowest: the permutation that moves those lanes to the front.
struct Compress {
    alignas(32) uint32_t lane[256][8];
    constexpr Compress() : lane() {
        for (int mask = 0; mask < 256; ++mask)
            for (int bit = 0, count = 0; bit < 8; ++bit)
                if (mask >> bit & 1) lane[mask][count++] = uint32_t(bit);
    }
};
constexpr Compress compress;

WG_TARGET inline int64_t append(const int32_t* key, int32_t low, int32_t high, int32_t* out) {
    const __m256i below = _mm256_set1_epi32(low - 1), end = _mm256_set1_epi32(high);
    int64_t count = 0;
    for (int j = 0; j < LANES; j += 8) {
        const __m256i keys = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(key + j));
        const __m256i inside = _mm256_and_si256(_mm256_cmpgt_epi32(keys, below), _mm256_cmpgt_epi32(end, keys));
        const int mask = _mm256_movemask_ps(_mm256_castsi256_ps(inside));
        const __m256i order = _mm256_load_si256(reinterpret_cast<const __m256i*>(compress.lane[mask]));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + count), _mm256_permutevar8x32_epi32(keys, order));
        count += __builtin_popcount(unsigned(mask));
    }
    return count;
}

constexpr int VECTOR = 32, TILE = 4;  // of products.inc
WG_TARGET inline __m256i halves(const char* at) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}
WG_TARGET inline __m256 of_f16(const char* at) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}

#include "plain.inc"
#include "products.inc"

}  // namespace

extern const Table avx2_table = {
    {{plain_scored<F32, false>(), plain_scored<F32, true>()},
     {plain_scored<BF16, false>(), plain_scored<BF16, true>()},
     {plain_scored<F16, false>(), plain_scored<F16, true>()}},
    {{}, plain_leveled<BF16>(), plain_leveled<F16>()},
    {plain<F32>(), plain<BF16>(), plain<F16>()},
    {of_products<F32>(), of_products<BF16>(), of_products<F16>()},
    reaching,
};

}  // namespace wg
#endif
