// BatchNorm by running statistics that keeps its input in 8 bits, a grid for each plane.

#include "activation.h"

namespace {

const float SMALLEST_STEP = 1e-20f;

template <int act>
void norm_8bit(const float *x, float *y, uint8_t *codes, float *low, float *step,
               const float *weight, const float *bias, const float *mean, const float *rstd,
               int64_t N, int64_t C, int64_t S, int threads) {
    const int first = act == none ? 0 : 1;
#pragma omp parallel for num_threads(threads)
    for (int64_t p = 0; p < N * C; p++) {
        const Affine a = affine(weight, bias, p % C, mean[p % C], rstd[p % C]);
        const float *__restrict xs = x + p * S;
        float *__restrict out = y + p * S;
        uint8_t *__restrict code = codes + p * S;
        float lowest = INFINITY, highest = -INFINITY;
        _Pragma("omp simd reduction(min : lowest) reduction(max : highest)")
        for (int64_t i = 0; i < S; i++) {
            float z = xs[i] * a.scale + a.shift;
            out[i] = value<act>(z);
            bool passes = act == none || (z > 0 && (act == relu || z < 6));
            float small = passes ? xs[i] : INFINITY, large = passes ? xs[i] : -INFINITY;
            lowest = small < lowest ? small : lowest;
            highest = large > highest ? large : highest;
        }
        if (!(highest >= lowest)) lowest = highest = 0;
        float width = (highest - lowest) / (LEVELS - first);
        width = width < SMALLEST_STEP ? SMALLEST_STEP : width;
        const float start = lowest - first * width, per_step = 1 / width;
        low[p] = start;
        step[p] = width;
        SIMD for (int64_t i = 0; i < S; i++) {
            float z = xs[i] * a.scale + a.shift;
            bool passes = act == none || (z > 0 && (act == relu || z < 6));
            float at = std::nearbyint((xs[i] - start) * per_step);
            at = at < first ? first : at;
            at = at > LEVELS ? LEVELS : at;
            code[i] = (uint8_t)(int)(passes ? at : 0.0f);
        }
    }
}

template <int act>
void norm_8bit_backward(const float *grad, const uint8_t *codes, const float *low,
                        const float *step, float *dx, const float *weight, const float *mean,
                        const float *rstd, float *dweight, float *dbias, int64_t N, int64_t C,
                        int64_t S, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t c = 0; c < C; c++) {
        const float scale = weight ? weight[c] * rstd[c] : rstd[c];
        double total = 0, product = 0;
        for (int64_t n = 0; n < N; n++) {
            const int64_t p = n * C + c;
            const float start = low[p] - mean[c], width = step[p];
            const float *__restrict gs = grad + p * S;
            const uint8_t *__restrict code = codes + p * S;
            float s = 0, q = 0;
            if (dx) {
                float *__restrict out = dx + p * S;
                SUMS(s, q) for (int64_t i = 0; i < S; i++) {
                    float g = act == none || code[i] ? gs[i] : 0;
                    out[i] = g * scale;
                    s += g;
                    q += g * (start + width * (float)code[i]);
                }
            } else {
                SUMS(s, q) for (int64_t i = 0; i < S; i++) {
                    float g = act == none || code[i] ? gs[i] : 0;
                    s += g;
                    q += g * (start + width * (float)code[i]);
                }
            }
            total += s;
            product += q;
        }
        dweight[c] = (float)(product * rstd[c]);
        dbias[c] = (float)total;
    }
}

} // namespace

EXPORT void batch_norm_act_8bit(const float *x, float *y, uint8_t *codes, float *low, float *step,
                                const float *weight, const float *bias, const float *mean,
                                const float *rstd, int64_t N, int64_t C, int64_t S, int act,
                                int threads) {
#define CALL(a)                                                                                    \
    norm_8bit<a>(x, y, codes, low, step, weight, bias, mean, rstd, N, C, S, threads)
    switch (act) {
        case none: CALL(none); break;
        case relu: CALL(relu); break;
        case relu6: CALL(relu6); break;
    }
#undef CALL
}

EXPORT void batch_norm_act_8bit_backward(const float *grad, const uint8_t *codes, const float *low,
                                         const float *step, float *dx, const float *weight,
                                         const float *mean, const float *rstd, float *dweight,
                                         float *dbias, int64_t N, int64_t C, int64_t S, int act,
                                         int threads) {
#define CALL(a)                                                                                    \
    norm_8bit_backward<a>(grad, codes, low, step, dx, weight, mean, rstd, dweight, dbias, N, C, S, \
                          threads)
    if (act == none)
        CALL(none);
    else
        CALL(relu);
#undef CALL
}
