// Max pooling that tells where in its window each maximum stood, and the gradient from that.

#include "activation.h"
#include <vector>

namespace {

struct Window {
    int64_t H, W, OH, OW;
    int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, step_h, step_w;
};

inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

const int NOWHERE = -1;

// One row of y, a place of the window at a time, so that columns go together.
void pool_row(const float *plane, const Window &w, int64_t row, float *__restrict best,
              int *__restrict found) {
    for (int64_t c = 0; c < w.OW; c++) {
        best[c] = -INFINITY;
        found[c] = NOWHERE;
    }
    for (int64_t i = 0; i < w.kernel_h; i++) {
        const int64_t y = row * w.stride_h - w.pad_h + i * w.step_h;
        if (y < 0 || y >= w.H) continue;
        for (int64_t j = 0; j < w.kernel_w; j++) {
            // columns whose place lies inside: 0 <= c * stride + shift < W
            const int64_t shift = j * w.step_w - w.pad_w, stride = w.stride_w;
            if (w.W - 1 - shift < 0) continue;
            const int64_t first = shift >= 0 ? 0 : (-shift + stride - 1) / stride;
            const int64_t end = at_most((w.W - 1 - shift) / stride + 1, w.OW);
            const float *line = plane + y * w.W + shift;
            const int place = (int)(i * w.kernel_w + j);
            SIMD for (int64_t c = first; c < end; c++) {
                const float value = line[c * stride];
                // the first of equals, and the last NaN: as PyTorch has it
                const bool takes = value > best[c] || value != value || found[c] == NOWHERE;
                best[c] = takes ? value : best[c];
                found[c] = takes ? place : found[c];
            }
        }
    }
}

} // namespace

// sizes: H W OH OW, then kernel, stride, padding, dilation, two each. codes: one byte for each of y
EXPORT void max_pool2d(const float *x, float *y, uint8_t *codes, int64_t planes,
                       const int64_t *sizes, int threads) {
    const Window w = *(const Window *)sizes;
#pragma omp parallel for num_threads(threads)
    for (int64_t p = 0; p < planes; p++) {
        std::vector<int> found(w.OW);
        for (int64_t row = 0; row < w.OH; row++) {
            const int64_t at = (p * w.OH + row) * w.OW;
            pool_row(x + p * w.H * w.W, w, row, y + at, found.data());
            for (int64_t c = 0; c < w.OW; c++) codes[at + c] = (uint8_t)found[c];
        }
    }
}

// dx is zeroed. packed: two codes share a byte, the first in the lower half
EXPORT void max_pool2d_backward(const float *grad, const uint8_t *codes, float *dx, int64_t planes,
                                const int64_t *sizes, int packed, int threads) {
    const Window w = *(const Window *)sizes;
    int64_t offset[256]; // of each code from the window's first place
    for (int64_t code = 0; code < w.kernel_h * w.kernel_w; code++)
        offset[code] = code / w.kernel_w * w.step_h * w.W + code % w.kernel_w * w.step_w;
#pragma omp parallel for num_threads(threads)
    for (int64_t p = 0; p < planes; p++) {
        int64_t at = p * w.OH * w.OW;
        for (int64_t row = 0; row < w.OH; row++) {
            const int64_t start = p * w.H * w.W + (row * w.stride_h - w.pad_h) * w.W - w.pad_w;
            for (int64_t c = 0; c < w.OW; c++, at++) {
                const int code = packed ? codes[at / 2] >> (at % 2 * 4) & 15 : codes[at];
                dx[start + c * w.stride_w + offset[code]] += grad[at];
            }
        }
    }
}

EXPORT void pack_nibbles(const uint8_t *codes, uint8_t *packed, int64_t count) {
    for (int64_t i = 0; i < count / 2; i++) packed[i] = codes[2 * i] | codes[2 * i + 1] << 4;
    if (count % 2) packed[count / 2] = codes[count - 1];
}
