// Several sha256 at once by the SHA instructions (FIPS 180-4). The rounds of one message wait for each other, so a core
// that works on two or more messages in turn hashes about twice as many bytes; hashlib has one message at a time.
#include "abi.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace wg {
namespace {

constexpr int BLOCK = 64;
constexpr int LANES_AT_ONCE = 4;  // messages in flight; two fill the unit, more hide the loads

alignas(16) constexpr uint32_t ROUND[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

#if defined(__x86_64__)

#define WG_SHA __attribute__((target("sha,sse4.1,ssse3")))

bool supported() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & (1u << 29)) && __builtin_cpu_supports("sse4.1");
}

// `count` blocks of N messages. The instructions want the eight words of a state as {f, e, b, a} and {h, g, d, c}.
template <int N>
WG_SHA void compress(WgSha256* const* hash, const uint8_t* const* data, int64_t count) {
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i abef[N], cdgh[N];
    const uint8_t* from[N];
    for (int i = 0; i < N; ++i) {
        const __m128i abcd = _mm_loadu_si128(reinterpret_cast<const __m128i*>(hash[i]->state));
        const __m128i efgh = _mm_loadu_si128(reinterpret_cast<const __m128i*>(hash[i]->state + 4));
        const __m128i cdab = _mm_shuffle_epi32(abcd, 0xB1), hgfe = _mm_shuffle_epi32(efgh, 0x1B);
        abef[i] = _mm_alignr_epi8(cdab, hgfe, 8), cdgh[i] = _mm_blend_epi16(hgfe, cdab, 0xF0);
        from[i] = data[i];
    }
    while (count--) {
        __m128i first[N], second[N], words[N][4];
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) {
            first[i] = abef[i], second[i] = cdgh[i];
            for (int j = 0; j < 4; ++j) {
                const auto* at = reinterpret_cast<const __m128i*>(from[i] + 16 * j);
                words[i][j] = _mm_shuffle_epi8(_mm_loadu_si128(at), big_endian);
            }
            from[i] += BLOCK;
        }
#pragma GCC unroll 16
        for (int four = 0; four < 16; ++four) {  // four rounds of every message
            const __m128i constants = _mm_load_si128(reinterpret_cast<const __m128i*>(ROUND + 4 * four));
            const int now = four & 3, next = (four + 1) & 3, last = (four + 3) & 3;
            __m128i sum[N];
#pragma GCC unroll 4
            for (int i = 0; i < N; ++i) {
                sum[i] = _mm_add_epi32(words[i][now], constants);
                cdgh[i] = _mm_sha256rnds2_epu32(cdgh[i], abef[i], sum[i]);
            }
#pragma GCC unroll 4
            for (int i = 0; i < N; ++i) {
                if (four < 12) {  // the words of the rounds to come
                    const __m128i behind = _mm_alignr_epi8(words[i][last], words[i][(four + 2) & 3], 4);
                    const __m128i part = _mm_add_epi32(_mm_sha256msg1_epu32(words[i][now], words[i][next]), behind);
                    words[i][now] = _mm_sha256msg2_epu32(part, words[i][last]);
                }
                abef[i] = _mm_sha256rnds2_epu32(abef[i], cdgh[i], _mm_shuffle_epi32(sum[i], 0x0E));
            }
        }
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) {
            abef[i] = _mm_add_epi32(abef[i], first[i]), cdgh[i] = _mm_add_epi32(cdgh[i], second[i]);
        }
    }
    for (int i = 0; i < N; ++i) {
        const __m128i feba = _mm_shuffle_epi32(abef[i], 0x1B), dchg = _mm_shuffle_epi32(cdgh[i], 0xB1);
        auto* to = reinterpret_cast<__m128i*>(hash[i]->state);
        _mm_storeu_si128(to, _mm_blend_epi16(feba, dchg, 0xF0));
        _mm_storeu_si128(to + 1, _mm_alignr_epi8(dchg, feba, 8));
    }
}

void compress_all(int lanes, WgSha256* const* hash, const uint8_t* const* data, int64_t count) {
    switch (lanes) {
        case 1: return compress<1>(hash, data, count);
        case 2: return compress<2>(hash, data, count);
        case 3: return compress<3>(hash, data, count);
        default: return compress<4>(hash, data, count);
    }
}

#else

bool supported() { return false; }
void compress_all(int, WgSha256* const*, const uint8_t* const*, int64_t) {}

#endif

void compress_one(WgSha256& hash, const uint8_t* data) {
    WgSha256* one = &hash;
    compress_all(1, &one, &data, 1);
}

// What is left over from the last call, filled up to a block.
void fill(WgSha256& hash, WgHashed& job) {
    const int64_t held = hash.length % BLOCK, taken = held ? std::min<int64_t>(BLOCK - held, job.size) : 0;
    std::memcpy(hash.rest + held, job.data, size_t(taken));
    job.data += taken, job.size -= taken, hash.length += uint64_t(taken);
    if (taken && held + taken == BLOCK) compress_one(hash, hash.rest);
}

void keep(WgSha256& hash, const WgHashed& job) {
    if (job.size) std::memcpy(hash.rest, job.data, size_t(job.size));
    hash.length += uint64_t(job.size);
}

// Whole blocks: as many messages side by side as still have some.
void whole_blocks(WgHashed* jobs, int32_t count) {
    for (;;) {
        WgSha256* hash[LANES_AT_ONCE];
        const uint8_t* data[LANES_AT_ONCE];
        WgHashed* chosen[LANES_AT_ONCE];
        int lanes = 0;
        int64_t blocks = INT64_MAX;
        for (int32_t i = 0; i < count && lanes < LANES_AT_ONCE; ++i) {
            if (jobs[i].size < BLOCK) continue;
            hash[lanes] = jobs[i].hash, data[lanes] = jobs[i].data, chosen[lanes++] = &jobs[i];
            blocks = std::min(blocks, jobs[i].size / BLOCK);
        }
        if (!lanes) return;
        compress_all(lanes, hash, data, blocks);
        for (int i = 0; i < lanes; ++i) {
            chosen[i]->data += blocks * BLOCK, chosen[i]->size -= blocks * BLOCK;
            chosen[i]->hash->length += uint64_t(blocks) * BLOCK;
        }
    }
}

}  // namespace
}  // namespace wg

int32_t wg_sha256_here() { return wg::supported(); }

void wg_sha256_update(WgHashed* jobs, int32_t count) {
    for (int32_t i = 0; i < count; ++i) wg::fill(*jobs[i].hash, jobs[i]);
    wg::whole_blocks(jobs, count);
    for (int32_t i = 0; i < count; ++i) wg::keep(*jobs[i].hash, jobs[i]);
}

void wg_sha256_digest(const WgSha256* given, uint8_t* digest) {
    WgSha256 hash = *given;
    uint8_t end[2 * wg::BLOCK] = {0x80};
    const int held = int(hash.length % wg::BLOCK), padding = (held < 56 ? 56 : 120) - held;
    for (int i = 0; i < 8; ++i) end[padding + i] = uint8_t(hash.length * 8 >> (56 - 8 * i));
    WgHashed job{&hash, end, padding + 8};
    wg_sha256_update(&job, 1);
    for (int i = 0; i < 32; ++i) digest[i] = uint8_t(hash.state[i / 4] >> (24 - 8 * (i % 4)));
}
