// What the kernels of this folder share: activation functions, their slopes, how loops are marked.
//
// build.py compiles the folder at first use, in seconds: no header of PyTorch is needed, so it outlives
// torch's versions. CPU and fp32. Tensors come as pointers to contiguous data; N samples, C channels of
// S places. Loops are plain; "omp simd" has the compiler vectorize them. -ffast-math must not be given:
// it would lose NaNs, and switch denormals off in the whole process.

#pragma once

#include <cmath>
#include <cstdint>

#define SIMD _Pragma("omp simd")
#define SUMS(...) _Pragma(STRING(omp simd reduction(+ : __VA_ARGS__)))
#define STRING(text) #text
#define EXPORT extern "C" __attribute__((visibility("default")))

using std::int64_t;
using std::uint8_t;

namespace {

enum Act { none, relu, relu6, hardswish, silu, gelu, gelu_tanh };

union Word {
    int i;
    float f;
};

// Cephes' expf: argument reduction by ln 2 in two parts, then a polynomial; 1 ulp
inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float n = std::nearbyint(x * 1.44269504f);
    float f = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    Word two_to_n;
    two_to_n.i = ((int)n + 127) << 23;
    return p * two_to_n.f;
}

inline float sigmoid(float z) { return 1.0f / (1.0f + exponential(-z)); }

// Normal distribution: Abramowitz and Stegun 7.1.26, off by at most 1.5e-7; density is exp(-z^2 / 2)
inline float cumulative(float z, float density) {
    float t = 1.0f / (1.0f + 0.3275911f * 0.70710678f * std::fabs(z));
    float p = 1.061405429f;
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    float tail = 0.5f * p * t * density;
    return z < 0 ? tail : 1.0f - tail;
}

const float SQRT_2_OVER_PI = 0.79788456f, CUBIC = 0.044715f, DENSITY_AT_0 = 0.39894228f;

// Comparisons are written so that NaN passes, as it does in PyTorch.
template <int act> inline float value(float z) {
    if (act == relu) return z < 0 ? 0 : z;
    if (act == relu6) {
        z = z < 0 ? 0 : z;
        return z > 6 ? 6 : z;
    }
    if (act == hardswish) {
        float gate = z + 3 < 0 ? 0 : z + 3;
        return z * (gate > 6 ? 6 : gate) * (1 / 6.0f);
    }
    if (act == silu) return z * sigmoid(z);
    if (act == gelu) return z * cumulative(z, exponential(-0.5f * z * z));
    if (act == gelu_tanh) return z * sigmoid(2 * SQRT_2_OVER_PI * (z + CUBIC * z * z * z));
    return z;
}

template <int act> inline float slope(float z) {
    if (act == hardswish) {
        float middle = z >= 3 ? 1 : z * (1 / 3.0f) + 0.5f;
        return z <= -3 ? 0 : middle;
    }
    if (act == silu) {
        float s = sigmoid(z);
        return s * (1 + z * (1 - s));
    }
    if (act == gelu) {
        float density = exponential(-0.5f * z * z);
        return cumulative(z, density) + z * density * DENSITY_AT_0;
    }
    if (act == gelu_tanh) {
        float s = sigmoid(2 * SQRT_2_OVER_PI * (z + CUBIC * z * z * z));
        return s + z * s * (1 - s) * 2 * SQRT_2_OVER_PI * (1 + 3 * CUBIC * z * z);
    }
    return 1;
}

template <int act> inline float back(float grad, float z) {
    if (act == none) return grad;
    if (act == relu) return z <= 0 ? 0 : grad;
    if (act == relu6) return z <= 0 || z >= 6 ? 0 : grad;
    return grad * slope<act>(z);
}

struct Affine {
    float scale, shift;
};

inline Affine affine(const float *weight, const float *bias, int64_t c, float mean, float rstd) {
    float scale = weight ? weight[c] * rstd : rstd;
    return {scale, (bias ? bias[c] : 0) - mean * scale};
}

const float LEVELS = 255;

} // namespace

#define FOR_EACH_ACT(call)                                                                         \
    switch (act) {                                                                                 \
        case none: call(none); break;                                                              \
        case relu: call(relu); break;                                                              \
        case relu6: call(relu6); break;                                                            \
        case hardswish: call(hardswish); break;                                                    \
        case silu: call(silu); break;                                                              \
        case gelu: call(gelu); break;                                                              \
        case gelu_tanh: call(gelu_tanh); break;                                                    \
    }
