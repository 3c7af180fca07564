// What the AVX-512 loops are made of: a group of 32 columns in two registers, its keys and its lane sums.
#pragma once

#include "kernels.h"

#if defined(__x86_64__)
// GCC 12's own header leaves the unused source operand of its masked builtins uninitialised, on purpose.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#define WG_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt,bmi,bmi2")))
#define WG_INLINE WG_TARGET __attribute__((always_inline)) static inline

namespace wg {
namespace {

struct Floats {
    __m512 first, second;
};

struct Raw {
    __m512i first, second;  // 16-bit types use the first only
};

struct Natural {
    static constexpr uint8_t place[LANES] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                             16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
};

struct F32x : Natural {
    static constexpr int64_t SIZE = 4;
    WG_INLINE Raw load(const char* p) { return {_mm512_loadu_si512(p), _mm512_loadu_si512(p + 64)}; }
    WG_INLINE Floats floats(Raw r) { return {_mm512_castsi512_ps(r.first), _mm512_castsi512_ps(r.second)}; }
    WG_INLINE __m256 eight(const char* p, int lane) {
        return _mm256_loadu_ps(reinterpret_cast<const float*>(p + 32 * lane));
    }
    WG_INLINE void put(char* p, Raw w, Raw origin, __mmask16 first, __mmask16 second) {
        _mm512_storeu_si512(p, _mm512_mask_mov_epi32(w.first, first, origin.first));
        _mm512_storeu_si512(p + 64, _mm512_mask_mov_epi32(w.second, second, origin.second));
    }
};

struct F16x : Natural {
    static constexpr int64_t SIZE = 2;
    WG_INLINE Raw load(const char* p) { return {_mm512_loadu_si512(p), _mm512_setzero_si512()}; }
    WG_INLINE Floats floats(Raw r) {
        return {_mm512_cvtph_ps(_mm512_castsi512_si256(r.first)),
                _mm512_cvtph_ps(_mm512_extracti64x4_epi64(r.first, 1))};
    }
    WG_INLINE __m256 eight(const char* p, int lane) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * lane)));
    }
    WG_INLINE void put(char* p, Raw w, Raw origin, __mmask16 first, __mmask16 second) {
        _mm512_storeu_si512(p, _mm512_mask_mov_epi16(w.first, _mm512_kunpackw(second, first), origin.first));
    }
};

struct BF16x {
    static constexpr int64_t SIZE = 2;
    static constexpr uint8_t place[LANES] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                             8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    WG_INLINE Raw load(const char* p) { return {_mm512_loadu_si512(p), _mm512_setzero_si512()}; }
    WG_INLINE Floats floats(Raw r) {
        const __m512i odd = _mm512_and_si512(r.first, _mm512_set1_epi32(int(0xFFFF0000)));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(r.first, 16)), _mm512_castsi512_ps(odd)};
    }
    WG_INLINE __m256 eight(const char* p, int lane) {
        const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32 * (lane % 2)));
        const __m256i odd = _mm256_and_si256(both, _mm256_set1_epi32(int(0xFFFF0000)));
        return _mm256_castsi256_ps(lane < 2 ? _mm256_slli_epi32(both, 16) : odd);
    }
    WG_INLINE void put(char* p, Raw w, Raw origin, __mmask16 even, __mmask16 odd) {
        // 0xD8 is c ? origin : w, bit by bit.
        const __m512i low = _mm512_set1_epi32(0x0000FFFF), high = _mm512_set1_epi32(int(0xFFFF0000));
        const __m512i c = _mm512_or_si512(_mm512_maskz_mov_epi32(even, low), _mm512_maskz_mov_epi32(odd, high));
        _mm512_storeu_si512(p, _mm512_ternarylogic_epi32(w.first, origin.first, c, 0xD8));
    }
};

WG_INLINE __m512i key_of(__m512 x, __m512 norm) {
    const __m512 size = _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7FFFFFFF)));
    return _mm512_castps_si512(_mm512_mul_ps(size, norm));
}

struct Keys {
    __m512i first, second;
};

WG_INLINE Keys keys_of(Floats x, __m512 norm0, __m512 norm1) {
    return {key_of(x.first, norm0), key_of(x.second, norm1)};
}

template <class T, bool DELTA>
WG_INLINE Floats scored(const Groups& g, int row, int64_t group) {
    const Floats w = T::floats(T::load(g.weights + row * g.row_stride + group * LANES * T::SIZE));
    if (!DELTA) return w;
    const Floats a = T::floats(T::load(g.aligned + row * g.aligned_stride + group * LANES * T::SIZE));
    return {_mm512_sub_ps(w.first, a.first), _mm512_sub_ps(w.second, a.second)};
}

template <class T, bool DELTA>
WG_INLINE void fetch(const Groups& g, int row, int64_t group) {
    if (!g.ahead) return;
    const int64_t at = group * LANES * T::SIZE + g.ahead;
    for (int64_t line = 0; line < LANES * T::SIZE; line += 64) {
        _mm_prefetch(g.weights + row * g.row_stride + at + line, _MM_HINT_T0);
        if (DELTA) _mm_prefetch(g.aligned + row * g.aligned_stride + at + line, _MM_HINT_T0);
    }
}

// Rows first.. of the call as a call of their own.
WG_INLINE Groups rows_from(const Groups& g, int row) {
    Groups some = g;  // a copy that no store through a pointer can change
    some.weights += row * g.row_stride;
    if (g.aligned) some.aligned += row * g.aligned_stride;
    return some;
}

// Lane sums of one kind: 32 doubles in the laid-out order.
struct Lanes {
    __m512d lane[4];
    WG_INLINE Lanes load(const double* p) {
        return {{_mm512_loadu_pd(p), _mm512_loadu_pd(p + 8), _mm512_loadu_pd(p + 16), _mm512_loadu_pd(p + 24)}};
    }
    WG_INLINE void store(const Lanes& lanes, double* p) {
        for (int i = 0; i < 4; ++i) _mm512_storeu_pd(p + 8 * i, lanes.lane[i]);
    }
};

WG_INLINE Lanes doubles(Floats x) {
    return {{_mm512_cvtps_pd(_mm512_castps512_ps256(x.first)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(x.first, 1)),
             _mm512_cvtps_pd(_mm512_castps512_ps256(x.second)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(x.second, 1))}};
}
}  // namespace
}  // namespace wg
#endif
