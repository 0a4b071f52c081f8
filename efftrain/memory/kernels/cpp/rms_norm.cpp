// RMSNorm forward and backward.

#include "activation.h"

EXPORT void rms_norm(const float *x, const float *weight, float *y, float *rstd, int64_t rows,
                     int64_t D, double eps, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t r = 0; r < rows; r++) {
        const float *__restrict xs = x + r * D;
        float *__restrict out = y + r * D;
        float squares = 0;
        SUMS(squares) for (int64_t i = 0; i < D; i++) squares += xs[i] * xs[i];
        const float scale = 1 / std::sqrt(squares / D + (float)eps);
        rstd[r] = scale;
        if (weight) {
            SIMD for (int64_t i = 0; i < D; i++) out[i] = xs[i] * scale * weight[i];
        } else {
            SIMD for (int64_t i = 0; i < D; i++) out[i] = xs[i] * scale;
        }
    }
}

// partial is zeroed, [threads, D]; the caller adds it up, in an order that does not change
EXPORT void rms_norm_backward(const float *grad, const float *x, const float *weight,
                              const float *rstd, float *dx, float *partial, int64_t rows,
                              int64_t D, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t t = 0; t < threads; t++) {
        float *__restrict sum = partial + t * D;
        for (int64_t r = rows * t / threads; r < rows * (t + 1) / threads; r++) {
            const float *__restrict xs = x + r * D, *__restrict gs = grad + r * D;
            const float scale = rstd[r];
            float product = 0;
            SUMS(product) for (int64_t i = 0; i < D; i++) {
                float p = gs[i] * (xs[i] * scale);
                sum[i] += p;
                product += weight ? p * weight[i] : p;
            }
            if (!dx) continue;
            const float mean = product / D;
            float *__restrict out = dx + r * D;
            SIMD for (int64_t i = 0; i < D; i++) {
                float g = weight ? gs[i] * weight[i] : gs[i];
                out[i] = scale * (g - xs[i] * scale * mean);
            }
        }
    }
}
