// The inner loops for any processor.
#include "kernels.h"

#define WG_TARGET

namespace wg {
namespace {

inline int64_t append(const int32_t* key, int32_t low, int32_t high, int32_t* out) {
    int64_t count = 0;
    for (int j = 0; j < LANES; ++j) {
        out[count] = key[j];
        count += (key[j] >= low) & (key[j] < high);
    }
    return count;
}

constexpr int VECTOR = 16, TILE = 2;  // of products.inc
typedef uint32_t Words __attribute__((vector_size(16)));
typedef float Floats __attribute__((vector_size(16)));

#include "plain.inc"

inline Words halves(const char* at) {
    const WG_u16* half = reinterpret_cast<const WG_u16*>(at);
    return Words{half[0], half[1], half[2], half[3]};
}

inline Floats of_f16(const char* at) {
    const WG_u16* half = reinterpret_cast<const WG_u16*>(at);
    return Floats{F16::value(half[0]), F16::value(half[1]), F16::value(half[2]), F16::value(half[3])};
}

#include "products.inc"

}  // namespace

extern const Table portable_table = {
    {{plain_scored<F32, false>(), plain_scored<F32, true>()},
     {plain_scored<BF16, false>(), plain_scored<BF16, true>()},
     {plain_scored<F16, false>(), plain_scored<F16, true>()}},
    {{}, plain_leveled<BF16>(), plain_leveled<F16>()},
    {plain<F32>(), plain<BF16>(), plain<F16>()},
    {of_products<F32>(), of_products<BF16>(), of_products<F16>()},
    reaching,
};

}  // namespace wg
