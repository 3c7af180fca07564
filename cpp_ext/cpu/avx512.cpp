// The inner loops for AVX-512 by hand, 32 columns a step in two vectors. bfloat16 is unpacked into its even and odd
// columns (a shift and a mask, no permute), so norms and thresholds are laid out in that order.
#include "avx512.h"

#if defined(__x86_64__)

namespace wg {
namespace {

template <class T, bool DELTA>
WG_TARGET void sample(const Groups& g, const int64_t* which, int64_t count, int32_t* out) {
    for (int64_t i = 0; i < count; ++i, out += LANES) {
        const Keys keys = keys_of(scored<T, DELTA>(g, 0, which[i]), _mm512_loadu_ps(g.norms + which[i] * LANES),
                                  _mm512_loadu_ps(g.norms + which[i] * LANES + 16));
        _mm512_storeu_si512(out, keys.first);
        _mm512_storeu_si512(out + 16, keys.second);
    }
}

template <class T, bool DELTA, int N>
WG_INLINE void collect_rows(const Groups& g, Band* bands) {
    __m512i low[N], high[N];
    int32_t* out[N];
    int64_t reached[N] = {};
    for (int r = 0; r < N; ++r) {
        low[r] = _mm512_set1_epi32(bands[r].low), high[r] = _mm512_set1_epi32(bands[r].high);
        out[r] = bands[r].out + bands[r].inside;
    }
    for (int64_t i = 0; i < g.count; ++i) {
        const __m512 norm0 = _mm512_loadu_ps(g.norms + i * LANES), norm1 = _mm512_loadu_ps(g.norms + i * LANES + 16);
        for (int r = 0; r < N; ++r) {
            const Keys keys = keys_of(scored<T, DELTA>(g, r, i), norm0, norm1);
            fetch<T, DELTA>(g, r, i);
            const __mmask16 m0 = _mm512_cmpge_epi32_mask(keys.first, low[r]),
                            m1 = _mm512_cmpge_epi32_mask(keys.second, low[r]);
            const __mmask16 in0 = _mm512_mask_cmplt_epi32_mask(m0, keys.first, high[r]);
            const __mmask16 in1 = _mm512_mask_cmplt_epi32_mask(m1, keys.second, high[r]);
            _mm512_storeu_si512(out[r], _mm512_maskz_compress_epi32(in0, keys.first));
            out[r] += __builtin_popcount(unsigned(in0));
            _mm512_storeu_si512(out[r], _mm512_maskz_compress_epi32(in1, keys.second));
            out[r] += __builtin_popcount(unsigned(in1));
            reached[r] += __builtin_popcount(unsigned(_mm512_kunpackw(m1, m0)));
        }
    }
    for (int r = 0; r < N; ++r) {
        const int64_t inside = out[r] - bands[r].out - bands[r].inside;
        bands[r].inside += inside;
        bands[r].above += reached[r] - inside;
    }
}

template <class T, bool DELTA>
WG_TARGET void collect(const Groups& g, Band* bands) {
    if (g.rows == ROWS) return collect_rows<T, DELTA, ROWS>(rows_from(g, 0), bands);
    for (int r = 0; r < g.rows; ++r) collect_rows<T, DELTA, 1>(rows_from(g, r), bands + r);
}

// The square of a float32 is exact in float64, so a fused multiply-add rounds like a multiply and an add. The square of
// a difference of two is not.
template <bool DELTA>
WG_INLINE void add_squares(Floats w, Floats a, __mmask16 first, __mmask16 second, Lanes* sums) {
    const Lanes x = doubles(w);
    const __mmask8 taken[4] = {__mmask8(first), __mmask8(first >> 8), __mmask8(second), __mmask8(second >> 8)};
    for (int i = 0; i < 4; ++i) {
        sums[WEIGHT].lane[i] = _mm512_fmadd_pd(x.lane[i], x.lane[i], sums[WEIGHT].lane[i]);
        if (!DELTA) sums[CHANGE].lane[i] = _mm512_mask3_fmadd_pd(x.lane[i], x.lane[i], sums[CHANGE].lane[i], taken[i]);
    }
    if (!DELTA) return;
    const Lanes origin = doubles(a);
    for (int i = 0; i < 4; ++i) {
        const __m512d d = _mm512_sub_pd(x.lane[i], origin.lane[i]), q = _mm512_mul_pd(d, d);
        const __mmask8 left = __mmask8(~taken[i]);
        sums[BEFORE].lane[i] = _mm512_add_pd(sums[BEFORE].lane[i], q);
        sums[CHANGE].lane[i] = _mm512_mask_add_pd(sums[CHANGE].lane[i], taken[i], sums[CHANGE].lane[i], q);
        sums[AFTER].lane[i] = _mm512_mask_add_pd(sums[AFTER].lane[i], left, sums[AFTER].lane[i], q);
    }
}

template <class T, bool DELTA, bool MEASURED, bool CAREFUL, int N>
WG_INLINE void take_rows(const Groups& g, const Edges* edges, bool always, Taken* out) {
    constexpr int KINDS = DELTA ? 4 : 2;
    __m512i take0[N], take1[N], spare0[N], spare1[N], largest = _mm512_setzero_si512();
    Lanes sums[N][SUMS];
    int64_t selected[N] = {}, changed[N] = {};
    for (int r = 0; r < N; ++r) {
        take0[r] = _mm512_loadu_si512(edges[r].take), take1[r] = _mm512_loadu_si512(edges[r].take + 16);
        spare0[r] = _mm512_loadu_si512(edges[r].spare), spare1[r] = _mm512_loadu_si512(edges[r].spare + 16);
        for (int s = 0; s < (MEASURED ? KINDS : 0); ++s) sums[r][s] = Lanes::load(out[r].sums.lane[s]);
    }
    const Raw zero = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int64_t i = 0; i < g.count; ++i) {
        const __m512 norm0 = _mm512_loadu_ps(g.norms + i * LANES), norm1 = _mm512_loadu_ps(g.norms + i * LANES + 16);
        for (int r = 0; r < N; ++r) {
            char* target = g.weights + r * g.row_stride + i * LANES * T::SIZE;
            const Raw raw = T::load(target);
            const Raw origin = DELTA ? T::load(g.aligned + r * g.aligned_stride + i * LANES * T::SIZE) : zero;
            const Floats w = T::floats(raw), a = T::floats(origin);
            const Floats x = DELTA ? Floats{_mm512_sub_ps(w.first, a.first), _mm512_sub_ps(w.second, a.second)} : w;
            const Keys keys = keys_of(x, norm0, norm1);
            fetch<T, DELTA>(g, r, i);
            largest = _mm512_max_epu32(largest, _mm512_max_epu32(keys.first, keys.second));
            __mmask16 m0 = _mm512_cmpge_epi32_mask(keys.first, take0[r]),
                      m1 = _mm512_cmpge_epi32_mask(keys.second, take1[r]);
            if (CAREFUL) {
                const float* norms = g.spare_norms + i * LANES;
                const Keys spare = keys_of(x, _mm512_loadu_ps(norms), _mm512_loadu_ps(norms + 16));
                largest = _mm512_max_epu32(largest, _mm512_max_epu32(spare.first, spare.second));
                m0 = _mm512_mask_cmplt_epi32_mask(m0, spare.first, spare0[r]);
                m1 = _mm512_mask_cmplt_epi32_mask(m1, spare.second, spare1[r]);
                const __mmask16 c0 = _mm512_mask_cmp_ps_mask(m0, x.first, _mm512_setzero_ps(), _CMP_NEQ_OQ);
                const __mmask16 c1 = _mm512_mask_cmp_ps_mask(m1, x.second, _mm512_setzero_ps(), _CMP_NEQ_OQ);
                selected[r] += __builtin_popcount(unsigned(_mm512_kunpackw(m1, m0)));
                changed[r] += __builtin_popcount(unsigned(_mm512_kunpackw(c1, c0)));
            }
            if (MEASURED) add_squares<DELTA>(w, a, m0, m1, sums[r]);
            if (always || !_mm512_kortestz(m0, m1)) T::put(target, raw, origin, m0, m1);
        }
    }
    const uint32_t most = _mm512_reduce_max_epu32(largest);
    for (int r = 0; r < N; ++r) {
        for (int s = 0; s < (MEASURED ? KINDS : 0); ++s) Lanes::store(sums[r][s], out[r].sums.lane[s]);
        if (most > out[r].largest) out[r].largest = most;
        out[r].selected += selected[r];
        out[r].changed += changed[r];
    }
}

// As many rows at once as the lane sums leave registers for.
template <class T, bool DELTA, bool MEASURED, bool CAREFUL>
WG_TARGET void take(const Groups& g, const Edges* edges, bool always, Taken* out) {
    constexpr int N = MEASURED ? (DELTA ? 1 : 2) : ROWS;
    int r = 0;
    for (; r + N <= g.rows; r += N)
        take_rows<T, DELTA, MEASURED, CAREFUL, N>(rows_from(g, r), edges + r, always, out + r);
    for (; r < g.rows; ++r) take_rows<T, DELTA, MEASURED, CAREFUL, 1>(rows_from(g, r), edges + r, always, out + r);
}

// --- by levels: 32 magnitudes a comparison, keys only where a group holds a candidate

// The bits of a mask in the order in which the type is unpacked.
WG_INLINE void unpacked(BF16x, __mmask32 mask, __mmask16& first, __mmask16& second) {
    first = __mmask16(_pext_u32(mask, 0x55555555u)), second = __mmask16(_pext_u32(mask, 0xAAAAAAAAu));
}

WG_INLINE void unpacked(Natural, __mmask32 mask, __mmask16& first, __mmask16& second) {
    first = __mmask16(mask), second = __mmask16(mask >> 16);
}

template <class T, int N>
WG_INLINE void collect_levels(const Groups& g, const uint16_t* low, const uint16_t* high, Band* bands,
                              uint32_t& largest) {
    const __m512i magnitude = _mm512_set1_epi16(0x7FFF);
    __m512i most = _mm512_setzero_si512();
    int64_t above[N] = {};
    for (int64_t i = 0; i < g.count; ++i) {
        const __m512i lows = _mm512_loadu_si512(low + i * LANES), highs = _mm512_loadu_si512(high + i * LANES);
        for (int r = 0; r < N; ++r) {
            const Raw raw = T::load(g.weights + r * g.row_stride + i * LANES * T::SIZE);
            const __m512i size = _mm512_and_si512(raw.first, magnitude);
            fetch<T, false>(g, r, i);
            most = _mm512_max_epu16(most, size);
            const __mmask32 over = _mm512_cmpge_epu16_mask(size, highs),
                            in = _mm512_cmpge_epu16_mask(size, lows) & ~over;
            above[r] += __builtin_popcount(over);
            if (!in) continue;
            const float* norms = g.norms + i * LANES;
            const Keys keys = keys_of(T::floats(raw), _mm512_loadu_ps(norms), _mm512_loadu_ps(norms + 16));
            int32_t* out = bands[r].out + bands[r].inside;
            __mmask16 first, second;
            unpacked(T(), in, first, second);
            _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(first, keys.first));
            _mm512_storeu_si512(out + __builtin_popcount(first), _mm512_maskz_compress_epi32(second, keys.second));
            bands[r].inside += __builtin_popcount(in);
        }
    }
    for (int r = 0; r < N; ++r) bands[r].above += above[r];
    const __m512i wide =
        _mm512_max_epu32(_mm512_and_si512(most, _mm512_set1_epi32(0xFFFF)), _mm512_srli_epi32(most, 16));
    const uint32_t found = _mm512_reduce_max_epu32(wide);
    if (found > largest) largest = found;
}

template <class T>
WG_TARGET void collect_leveled(const Groups& g, const uint16_t* low, const uint16_t* high, Band* bands,
                               uint32_t& largest) {
    if (g.rows == ROWS) return collect_levels<T, ROWS>(rows_from(g, 0), low, high, bands, largest);
    for (int r = 0; r < g.rows; ++r) collect_levels<T, 1>(rows_from(g, r), low, high, bands + r, largest);
}

template <class T, bool MEASURED, bool SPARED, int N>
WG_INLINE void take_levels(const Groups& g, const uint16_t* low, const uint16_t* high, bool always, Taken* out) {
    const __m512i magnitude = _mm512_set1_epi16(0x7FFF);
    Lanes sums[N][SUMS];
    int64_t selected[N] = {};
    for (int r = 0; r < N; ++r)
        for (int s = 0; s < (MEASURED ? 2 : 0); ++s) sums[r][s] = Lanes::load(out[r].sums.lane[s]);
    for (int64_t i = 0; i < g.count; ++i) {
        const __m512i lows = _mm512_loadu_si512(low + i * LANES);
        const __m512i highs = SPARED ? _mm512_loadu_si512(high + i * LANES) : lows;
        for (int r = 0; r < N; ++r) {
            char* target = g.weights + r * g.row_stride + i * LANES * T::SIZE;
            const Raw raw = T::load(target);
            const __m512i size = _mm512_and_si512(raw.first, magnitude);
            fetch<T, false>(g, r, i);
            __mmask32 taken = _mm512_cmpge_epu16_mask(size, lows);
            if (SPARED) taken &= ~_mm512_cmpge_epu16_mask(size, highs);
            selected[r] += __builtin_popcount(taken);
            if (always || taken) _mm512_storeu_si512(target, _mm512_maskz_mov_epi16(~taken, raw.first));
            if (!MEASURED) continue;
            __mmask16 first, second;
            unpacked(T(), taken, first, second);
            const Floats w = T::floats(raw);
            add_squares<false>(w, w, first, second, sums[r]);
        }
    }
    for (int r = 0; r < N; ++r) {
        for (int s = 0; s < (MEASURED ? 2 : 0); ++s) Lanes::store(sums[r][s], out[r].sums.lane[s]);
        out[r].selected += selected[r];
    }
}

template <class T, bool MEASURED>
WG_TARGET void take_leveled(const Groups& g, const uint16_t* low, const uint16_t* high, bool always, Taken* out) {
    constexpr int N = MEASURED ? 2 : ROWS;
    int r = 0;
    for (; r + N <= g.rows; r += N) {
        if (high)
            take_levels<T, MEASURED, true, N>(rows_from(g, r), low, high, always, out + r);
        else
            take_levels<T, MEASURED, false, N>(rows_from(g, r), low, high, always, out + r);
    }
    for (; r < g.rows; ++r) {
        if (high)
            take_levels<T, MEASURED, true, 1>(rows_from(g, r), low, high, always, out + r);
        else
            take_levels<T, MEASURED, false, 1>(rows_from(g, r), low, high, always, out + r);
    }
}

// --- pair statistics

struct PairSums {
    Lanes aa, bb, ab, dd, d4;
    __m512d largest;
};

// Eight columns. Products of two float32 are exact, so they may be fused; squares of d are not.
WG_INLINE void add_pair(__m256 a, __m256 b, int lane, PairSums& s) {
    const __m512d x = _mm512_cvtps_pd(a), y = _mm512_cvtps_pd(b);
    const __m512d d = _mm512_sub_pd(x, y), q = _mm512_mul_pd(d, d);
    s.aa.lane[lane] = _mm512_fmadd_pd(x, x, s.aa.lane[lane]);
    s.bb.lane[lane] = _mm512_fmadd_pd(y, y, s.bb.lane[lane]);
    s.ab.lane[lane] = _mm512_fmadd_pd(x, y, s.ab.lane[lane]);
    s.dd.lane[lane] = _mm512_add_pd(s.dd.lane[lane], q);
    s.d4.lane[lane] = _mm512_add_pd(s.d4.lane[lane], _mm512_mul_pd(q, q));
    s.largest = _mm512_max_pd(s.largest, q);
}

// Eight columns are loaded at a time: the upper half of a wider register costs as much as an addition.
template <class T>
WG_TARGET void pair(const char* left, const char* right, int64_t groups, PairLanes& out) {
    PairSums s = {Lanes::load(out.aa), Lanes::load(out.bb), Lanes::load(out.ab),
                  Lanes::load(out.dd), Lanes::load(out.d4), _mm512_loadu_pd(out.largest)};
    int64_t changed = 0;
    for (int64_t i = 0; i < groups; ++i, left += LANES * T::SIZE, right += LANES * T::SIZE) {
#pragma GCC unroll 4
        for (int lane = 0; lane < 4; ++lane) {
            const __m256 a = T::eight(left, lane), b = T::eight(right, lane);
            changed += __builtin_popcount(_mm256_cmp_ps_mask(a, b, _CMP_NEQ_UQ));
            add_pair(a, b, lane, s);
        }
    }
    Lanes::store(s.aa, out.aa), Lanes::store(s.bb, out.bb), Lanes::store(s.ab, out.ab);
    Lanes::store(s.dd, out.dd), Lanes::store(s.d4, out.d4);
    _mm512_storeu_pd(out.largest, s.largest);
    out.changed += changed;
}

WG_TARGET int64_t reaching(const int32_t* keys, int64_t count, int32_t low) {
    const __m512i lows = _mm512_set1_epi32(low);
    int64_t found = 0, j = 0;
    for (; j + 64 <= count; j += 64) {
        const __mmask16 a = _mm512_cmpge_epi32_mask(_mm512_loadu_si512(keys + j), lows);
        const __mmask16 b = _mm512_cmpge_epi32_mask(_mm512_loadu_si512(keys + j + 16), lows);
        const __mmask16 c = _mm512_cmpge_epi32_mask(_mm512_loadu_si512(keys + j + 32), lows);
        const __mmask16 d = _mm512_cmpge_epi32_mask(_mm512_loadu_si512(keys + j + 48), lows);
        const __mmask64 all = _mm512_kunpackd(_mm512_kunpackw(d, c), _mm512_kunpackw(b, a));
        found += __builtin_popcountll(all);
    }
    for (; j < count; j += 16) {
        const __mmask16 valid = __mmask16(count - j < 16 ? (1u << (count - j)) - 1 : 0xFFFF);
        found +=
            __builtin_popcount(_mm512_mask_cmpge_epi32_mask(valid, _mm512_maskz_loadu_epi32(valid, keys + j), lows));
    }
    return found;
}

namespace by_compiler {
inline int64_t append(const int32_t*, int32_t, int32_t, int32_t*) { return 0; }  // its `collect` is not used
constexpr int VECTOR = 64, TILE = 16;  // of products.inc
WG_TARGET inline __m512i halves(const char* at) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
}
WG_TARGET inline __m512 of_f16(const char* at) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
}

#include "plain.inc"
#include "products.inc"
}  // namespace by_compiler

template <class T, bool DELTA>
constexpr Scored hand_scored() {
    return {T::place,
            sample<T, DELTA>,
            collect<T, DELTA>,
            take<T, DELTA, false, false>,
            take<T, DELTA, true, false>,
            take<T, DELTA, true, true>};
}

template <class T, class Plainly>
constexpr Leveled hand_leveled() {
    return {by_compiler::levels<Plainly>, collect_leveled<T>, take_leveled<T, false>, take_leveled<T, true>};
}

template <class T, class Plainly>
constexpr Plain hand_plain() {
    return {T::place, pair<T>, by_compiler::squares<Plainly>, by_compiler::finite<Plainly>, by_compiler::scale<Plainly>};
}

}  // namespace

extern const Table avx512_table = {
    {{hand_scored<F32x, false>(), hand_scored<F32x, true>()},
     {hand_scored<BF16x, false>(), hand_scored<BF16x, true>()},
     {hand_scored<F16x, false>(), hand_scored<F16x, true>()}},
    {{}, hand_leveled<BF16x, by_compiler::BF16>(), hand_leveled<F16x, by_compiler::F16>()},
    {hand_plain<F32x, by_compiler::F32>(), hand_plain<BF16x, by_compiler::BF16>(),
     hand_plain<F16x, by_compiler::F16>()},
    {by_compiler::of_products<by_compiler::F32>(), by_compiler::of_products<by_compiler::BF16>(),
     by_compiler::of_products<by_compiler::F16>()},
    reaching,
};

}  // namespace wg
#endif
