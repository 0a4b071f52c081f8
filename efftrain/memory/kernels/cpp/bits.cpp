// ReLU, of a sum, with one bit of each element for backward.

#include "activation.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

// which of up to eight values are above zero, the first in the lowest bit
inline uint8_t above_zero(const float *v, int64_t count) {
#if defined(__AVX512F__)
    if (count >= 8)
        return (uint8_t)_mm512_cmp_ps_mask(_mm512_castps256_ps512(_mm256_loadu_ps(v)),
                                           _mm512_setzero_ps(), _CMP_GT_OQ);
#elif defined(__AVX2__)
    if (count >= 8)
        return (uint8_t)_mm256_movemask_ps(
            _mm256_cmp_ps(_mm256_loadu_ps(v), _mm256_setzero_ps(), _CMP_GT_OQ));
#endif
    unsigned bits = 0;
    for (int64_t k = 0; k < count && k < 8; k++) bits |= (unsigned)(v[k] > 0) << k;
    return (uint8_t)bits;
}

} // namespace

EXPORT void add_relu(const float *a, const float *b, float *y, uint8_t *bits, int64_t count,
                     int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t byte = 0; byte < count / 8; byte++) {
        float *__restrict out = y + byte * 8;
        const float *__restrict one = a + byte * 8, *__restrict other = b ? b + byte * 8 : nullptr;
        SIMD for (int k = 0; k < 8; k++) {
            float sum = other ? one[k] + other[k] : one[k];
            out[k] = sum < 0 ? 0 : sum;
        }
        bits[byte] = above_zero(out, 8);
    }
    const int64_t rest = count / 8 * 8;
    for (int64_t i = rest; i < count; i++) {
        float sum = b ? a[i] + b[i] : a[i];
        y[i] = sum < 0 ? 0 : sum;
    }
    if (rest < count) bits[count / 8] = above_zero(y + rest, count - rest);
}

EXPORT void mask_grad(const float *__restrict grad, const uint8_t *__restrict bits,
                      float *__restrict dx, int64_t count, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t byte = 0; byte < count / 8; byte++) {
        const unsigned set = bits[byte];
        SIMD for (int k = 0; k < 8; k++) dx[byte * 8 + k] = set >> k & 1 ? grad[byte * 8 + k] : 0;
    }
    for (int64_t i = count / 8 * 8; i < count; i++) dx[i] = bits[i / 8] >> i % 8 & 1 ? grad[i] : 0;
}
