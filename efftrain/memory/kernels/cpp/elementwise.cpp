// Gated linear units, and GELU with its derivative in 8 bits.

#include "activation.h"

namespace {

template <int act>
void gate_forward(const float *__restrict gate, const float *__restrict up, float *__restrict y,
                  int64_t count, int threads) {
#pragma omp parallel for simd num_threads(threads)
    for (int64_t i = 0; i < count; i++) y[i] = value<act>(gate[i]) * up[i];
}

template <int act>
void gate_backward(const float *__restrict grad, const float *__restrict gate,
                   const float *__restrict up, float *__restrict dgate, float *__restrict dup,
                   int64_t count, int threads) {
#pragma omp parallel for simd num_threads(threads)
    for (int64_t i = 0; i < count; i++) {
        dgate[i] = back<act>(grad[i] * up[i], gate[i]);
        dup[i] = grad[i] * value<act>(gate[i]);
    }
}

} // namespace

EXPORT void gated(const float *gate, const float *up, float *y, int64_t count, int act,
                  int threads) {
#define CALL(a) gate_forward<a>(gate, up, y, count, threads)
    FOR_EACH_ACT(CALL)
#undef CALL
}

EXPORT void gated_backward(const float *grad, const float *gate, const float *up, float *dgate,
                           float *dup, int64_t count, int act, int threads) {
#define CALL(a) gate_backward<a>(grad, gate, up, dgate, dup, count, threads)
    FOR_EACH_ACT(CALL)
#undef CALL
}

EXPORT void gelu_8bit(const float *__restrict x, float *__restrict y, uint8_t *__restrict codes,
                      int64_t count, float low, float step, int tanh, int threads) {
    const float per_step = 1 / step;
#define CODE(act)                                                                                  \
    _Pragma("omp parallel for simd num_threads(threads)")                                          \
    for (int64_t i = 0; i < count; i++) {                                                          \
        y[i] = value<act>(x[i]);                                                                   \
        float at = std::nearbyint((slope<act>(x[i]) - low) * per_step);                            \
        at = at < 0 ? 0 : at;                                                                      \
        codes[i] = (uint8_t)(int)(at > LEVELS ? LEVELS : at);                                      \
    }
    if (tanh) {
        CODE(gelu_tanh)
    } else {
        CODE(gelu)
    }
}

EXPORT void gelu_8bit_backward(const float *__restrict grad, const uint8_t *__restrict codes,
                               float *__restrict dx, int64_t count, float low, float step,
                               int threads) {
#pragma omp parallel for simd num_threads(threads)
    for (int64_t i = 0; i < count; i++) dx[i] = grad[i] * ((float)codes[i] * step + low);
}
