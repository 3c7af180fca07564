// The dtypes as their bits, and their exact values in float32. No header of the toolkit is needed: NVRTC compiles this.
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
