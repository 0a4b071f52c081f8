// BatchNorm and the activation after it: forward, forward again, backward.

#include "activation.h"

namespace {

template <int act>
void apply(const float *__restrict x, float *__restrict y, int64_t count, Affine a) {
    SIMD for (int64_t i = 0; i < count; i++) y[i] = value<act>(x[i] * a.scale + a.shift);
}

template <int act>
void norm_forward(const float *x, float *y, const float *weight, const float *bias,
                  float *running_mean, float *running_var, float *mean, float *rstd, int64_t N,
                  int64_t C, int64_t S, int training, double momentum, double eps, int threads) {
    const int64_t count = N * S;
#pragma omp parallel for num_threads(threads)
    for (int64_t c = 0; c < C; c++) {
        if (training) {
            // about the channel's first value, so that the squares do not cancel
            const float origin = x[c * S];
            double total = 0, squares = 0;
            for (int64_t n = 0; n < N; n++) {
                const float *plane = x + (n * C + c) * S;
                float s = 0, q = 0;
                SUMS(s, q) for (int64_t i = 0; i < S; i++) {
                    float d = plane[i] - origin;
                    s += d;
                    q += d * d;
                }
                total += s;
                squares += q;
            }
            double offset = total / count, var = squares / count - offset * offset;
            var = var < 0 ? 0 : var;
            mean[c] = (float)(origin + offset);
            rstd[c] = (float)(1 / std::sqrt(var + eps));
            if (running_mean) running_mean[c] += (float)(momentum * (mean[c] - running_mean[c]));
            if (running_var)
                running_var[c] += (float)(momentum * (var * count / (count - 1) - running_var[c]));
        } else {
            mean[c] = running_mean[c];
            rstd[c] = 1 / std::sqrt(running_var[c] + (float)eps);
        }
        Affine a = affine(weight, bias, c, mean[c], rstd[c]);
        for (int64_t n = 0; n < N; n++) apply<act>(x + (n * C + c) * S, y + (n * C + c) * S, S, a);
    }
}

template <int act>
void norm_again(const float *x, float *y, const float *weight, const float *bias,
                const float *mean, const float *rstd, int64_t N, int64_t C, int64_t S, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t p = 0; p < N * C; p++) {
        int64_t c = p % C;
        apply<act>(x + p * S, y + p * S, S, affine(weight, bias, c, mean[c], rstd[c]));
    }
}

template <int act>
void norm_backward(const float *grad, const float *x, float *dx, const float *weight,
                   const float *bias, const float *mean, const float *rstd, float *dweight,
                   float *dbias, int64_t N, int64_t C, int64_t S, int training, int threads) {
    const int64_t count = N * S;
#pragma omp parallel for num_threads(threads)
    for (int64_t c = 0; c < C; c++) {
        const float m = mean[c];
        const Affine a = affine(weight, bias, c, m, rstd[c]);
        double total = 0, product = 0;
        for (int64_t n = 0; n < N; n++) {
            const float *__restrict xs = x + (n * C + c) * S, *__restrict gs = grad + (n * C + c) * S;
            float s = 0, q = 0;
            if (dx && !training) {
                float *__restrict out = dx + (n * C + c) * S;
                SUMS(s, q) for (int64_t i = 0; i < S; i++) {
                    float g = back<act>(gs[i], xs[i] * a.scale + a.shift);
                    out[i] = g * a.scale;
                    s += g;
                    q += g * (xs[i] - m);
                }
            } else {
                SUMS(s, q) for (int64_t i = 0; i < S; i++) {
                    float g = back<act>(gs[i], xs[i] * a.scale + a.shift);
                    s += g;
                    q += g * (xs[i] - m);
                }
            }
            total += s;
            product += q;
        }
        dweight[c] = (float)(product * rstd[c]);
        dbias[c] = (float)total;
        if (!dx || !training) continue;
        const float mean_grad = (float)(total / count);
        const float tilt = (float)(product * rstd[c] * rstd[c] / count);
        for (int64_t n = 0; n < N; n++) {
            const float *__restrict xs = x + (n * C + c) * S, *__restrict gs = grad + (n * C + c) * S;
            float *__restrict out = dx + (n * C + c) * S;
            SIMD for (int64_t i = 0; i < S; i++) {
                float g = back<act>(gs[i], xs[i] * a.scale + a.shift);
                out[i] = (g - mean_grad - (xs[i] - m) * tilt) * a.scale;
            }
        }
    }
}

} // namespace

EXPORT void batch_norm_act(const float *x, float *y, const float *weight, const float *bias,
                           float *running_mean, float *running_var, float *mean, float *rstd,
                           int64_t N, int64_t C, int64_t S, int training, double momentum,
                           double eps, int act, int threads) {
#define CALL(a)                                                                                    \
    norm_forward<a>(x, y, weight, bias, running_mean, running_var, mean, rstd, N, C, S, training,  \
                    momentum, eps, threads)
    FOR_EACH_ACT(CALL)
#undef CALL
}

EXPORT void batch_norm_act_again(const float *x, float *y, const float *weight, const float *bias,
                                 const float *mean, const float *rstd, int64_t N, int64_t C,
                                 int64_t S, int act, int threads) {
#define CALL(a) norm_again<a>(x, y, weight, bias, mean, rstd, N, C, S, threads)
    FOR_EACH_ACT(CALL)
#undef CALL
}

EXPORT void batch_norm_act_backward(const float *grad, const float *x, float *dx,
                                    const float *weight, const float *bias, const float *mean,
                                    const float *rstd, float *dweight, float *dbias, int64_t N,
                                    int64_t C, int64_t S, int training, int act, int threads) {
#define CALL(a)                                                                                    \
    norm_backward<a>(grad, x, dx, weight, bias, mean, rstd, dweight, dbias, N, C, S, training,     \
                     threads)
    FOR_EACH_ACT(CALL)
#undef CALL
}
