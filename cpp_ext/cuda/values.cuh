// The dtypes as their bits, their exact values in float32, and vectors of 16 bytes. No header of the toolkit is needed:
// NVRTC compiles this.
#pragma once

struct Bfloat16 {
    unsigned short bits;
};

struct Float16 {
    unsigned short bits;
};

__device__ inline float value_of(float x) { return x; }

__device__ inline float value_of(Bfloat16 x) { return __uint_as_float(unsigned(x.bits) << 16); }

__device__ inline float value_of(Float16 x) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
    return value;
}

template <class T>
struct alignas(16) Vector {
    static constexpr int EACH = 16 / sizeof(T);
    T at[EACH];
};

template <class T>
__device__ inline float value_at(const Vector<T>& of, int e) {
    return value_of(of.at[e]);
}

// From the word that holds it: one instruction each, where taking the half out first would be two.
template <>
__device__ inline float value_at(const Vector<Bfloat16>& of, int e) {
    const unsigned word = reinterpret_cast<const unsigned*>(&of)[e / 2];
    return __uint_as_float(e % 2 ? word & 0xFFFF0000u : word << 16);
}

// 16 bytes in one load; `from` must be aligned to them.
template <class T>
__device__ inline Vector<T> vector_at(const T* from) {
    Vector<T> found;
    *reinterpret_cast<uint4*>(&found) = *reinterpret_cast<const uint4*>(from);
    return found;
}

// The vector at columns first, first + 1, ... of a row: one load where WHOLE, else what the row has, then zeros.
template <bool WHOLE, class T>
__device__ inline Vector<T> part_of(const T* row, int first, int columns) {
    if constexpr (WHOLE) {
        return vector_at(row + first);
    } else {
        Vector<T> found;
#pragma unroll
        for (int e = 0; e < Vector<T>::EACH; ++e) found.at[e] = first + e < columns ? row[first + e] : T{};
        return found;
    }
}
