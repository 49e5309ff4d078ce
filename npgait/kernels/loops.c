// What NumPy does in several passes over memory, in one: the kernels beside this file as loops for a CPU.
//
// Built once with REAL float and once with REAL double; see setup.py. Python shares the work out to threads, which run
// these without its lock. Names and arguments are those of the kernels in *.cu.

#include <string.h>
#include <tgmath.h>

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
#define LOOP __attribute__((target_clones("avx512f", "avx2", "default"))) void  // the processor's own at run time
#else
#define LOOP void
#endif
#if defined(_MSC_VER)
#define EXPORT __declspec(dllexport)
#define restrict __restrict
#else
#define EXPORT
#endif
#define EQUATION static inline

#include "equations.h"

typedef long long int64;

// --- elementwise ---------------------------------------------------------------------------------------

EXPORT LOOP bias_activation(REAL* restrict a, const REAL* restrict b, REAL* restrict y, int64 n, int u,
                            REAL slope) {
    for (int64 row = 0; row < n; row += u)
        for (int64 j = 0; j < u; ++j) {
            a[row + j] += b[j];
            y[row + j] = leaky_relu(a[row + j], slope);
        }
}

EXPORT LOOP times_derivative(const REAL* restrict a, const REAL* restrict e, REAL* restrict out, int64 n,
                             REAL factor) {
    for (int64 t = 0; t < n; ++t) out[t] = times_f_prime(a[t], e[t], factor);
}

EXPORT LOOP difference(const REAL* restrict y, const REAL* restrict v, const REAL* restrict s,
                       REAL* restrict d, int64 n, int64 per_sample, REAL slope) {
    for (int64 first = 0; first < n; first += per_sample) {
        REAL size = s[first / per_sample];
        for (int64 t = first; t < first + per_sample; ++t)
            d[t] = difference_of_inverses(y[t], v[t], size, slope);
    }
}

EXPORT LOOP adam(REAL* restrict p, const REAL* restrict g, REAL* restrict m, REAL* restrict v,
                 const double* restrict clock, int64 n, double beta1, double beta2) {
    REAL rate = (REAL)clock[1], epsilon = (REAL)clock[2];
    REAL rest1 = (REAL)(1 - beta1), rest2 = (REAL)(1 - beta2);
    for (int64 t = 0; t < n; ++t)
        adam_step(p + t, g[t], m + t, v + t, rate, epsilon, (REAL)beta1, rest1, (REAL)beta2, rest2);
}

EXPORT LOOP normalise(const unsigned char* restrict x, const REAL* restrict shift,
                      const REAL* restrict scale, REAL* restrict out, int64 n, int channels) {
    if (channels == 3)  // known when compiled, so that the loop over pixels is made of wide operations
        for (int64 t = 0; t < n; t += 3)
            for (int c = 0; c < 3; ++c) out[t + c] = normalised(x[t + c], shift[c], scale[c]);
    else
        for (int64 t = 0; t < n; t += channels)
            for (int c = 0; c < channels; ++c) out[t + c] = normalised(x[t + c], shift[c], scale[c]);
}

// --- patches -------------------------------------------------------------------------------------------

// A run is a row of a patch: k pixels of all channels, in one piece in patch and image. Columns `from` to `to` of it
// lie inside the image.
typedef struct {
    int64 pixel;  // of its first column, inside the image or not
    int from, to;
} Run;

static Run run_of(int64 b, int row, int column, int height, int width, int k, int s, int top, int left,
                  int i) {
    int h = row * s + i - top, w = column * s - left;
    Run run = {(b * height + h) * width + w, w < 0 ? -w : 0, w + k > width ? width - w : k};
    if (h < 0 || h >= height || run.to <= run.from) run.pixel = run.from = run.to = 0;
    return run;
}

#define WIDE 16  // values that are copied at a time

EXPORT LOOP cut_patches(const REAL* restrict x, REAL* restrict patches, int64 n, int height, int width,
                        int channels, int k, int s, int top, int left, int rows, int columns) {
    int64 length = (int64)k * channels, samples = n / ((int64)rows * columns * k * length);
    REAL* out = patches;
    for (int64 b = 0; b < samples; ++b)
        for (int row = 0; row < rows; ++row)
            for (int column = 0; column < columns; ++column)
                for (int i = 0; i < k; ++i, out += length) {
                    Run run = run_of(b, row, column, height, width, k, s, top, left, i);
                    const REAL* in = x + run.pixel * channels;
                    if (run.from == 0 && run.to == k && length >= WIDE) {
                        for (int64 q = 0; q + WIDE <= length; q += WIDE)
                            memcpy(out + q, in + q, WIDE * sizeof(REAL));
                        memcpy(out + length - WIDE, in + length - WIDE, WIDE * sizeof(REAL));
                        continue;
                    }
                    for (int64 q = 0; q < (int64)run.from * channels; ++q) out[q] = 0;
                    for (int64 q = (int64)run.from * channels; q < (int64)run.to * channels; ++q) out[q] = in[q];
                    for (int64 q = (int64)run.to * channels; q < length; ++q) out[q] = 0;
                }
}

EXPORT LOOP add_patches(const REAL* restrict patches, REAL* restrict x, int64 n, int height, int width,
                        int channels, int k, int s, int top, int left, int rows, int columns) {
    int64 length = (int64)k * channels, samples = n / ((int64)height * width * channels);
    const REAL* in = patches;
    memset(x, 0, n * sizeof(REAL));
    for (int64 b = 0; b < samples; ++b)
        for (int row = 0; row < rows; ++row)
            for (int column = 0; column < columns; ++column)
                for (int i = 0; i < k; ++i, in += length) {
                    Run run = run_of(b, row, column, height, width, k, s, top, left, i);
                    REAL* out = x + run.pixel * channels;
                    for (int64 q = (int64)run.from * channels; q < (int64)run.to * channels; ++q) out[q] += in[q];
                }
}
