// What NumPy does in several passes over memory, in one: the kernels beside this file as loops for a CPU.
//
// Built once with REAL float and once with REAL double; see setup.py. Python shares the work out to threads, which run
// these without its lock. Loops that have a twin in *.cu share its name and arguments.

#include <string.h>
#include <tgmath.h>

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
#define LOOP __attribute__((target_clones("avx512f", "avx2", "default"))) void  // the processor's own at run time
#else
#define LOOP void
#endif
#if defined(_MSC_VER)
#define restrict __restrict
#endif
#define EQUATION static inline

#include "equations.h"
#include "loops.h"

#define SOME 512  // values that are looked at together

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
    for (int64 first = 0; first < n; first += per_sample)
        for (int64 t = first, end; t < first + per_sample; t = end) {
            end = least(t + SOME, first + per_sample);
            REAL size = s[first / per_sample];
            int crossed = 0;
            for (int64 i = t; i < end; ++i) {
                crossed |= crosses_kink(y[i], v[i], size);
                d[i] = on_one_side(y[i], v[i], slope);
            }
            // Few units are crossed: only where there is one, a slow loop looks for it.
            for (int64 i = t; crossed && i < end; ++i)
                if (crosses_kink(y[i], v[i], size)) d[i] = on_two_sides(y[i], v[i], size, slope);
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

#define TILE_ROWS 32  // of a matrix that is mirrored: a tile that stays in the nearest cache, whose rows fill lines of it
#define TILE_COLUMNS 16

// Of a matrix of rows `stride` values apart, copy a block to where its mirror image lies, image[j][i] = block[i][j]; of
// a block on the diagonal, where block is image, what is below the diagonal.
EXPORT LOOP mirror(const REAL* block, REAL* image, int64 stride, int rows, int columns) {
    int on_diagonal = block == image;
    REAL tile[TILE_ROWS][TILE_COLUMNS];
    for (int64 top = 0; top < rows; top += TILE_ROWS) {
        int64 bottom = least(top + TILE_ROWS, rows);
        for (int64 left = 0; left < (on_diagonal ? bottom : columns); left += TILE_COLUMNS) {
            int64 right = least(left + TILE_COLUMNS, columns);
            if (top + TILE_ROWS > rows || left + TILE_COLUMNS > (on_diagonal ? top : columns)) {
                for (int64 j = left; j < right; ++j)
                    for (int64 i = on_diagonal && top <= j ? j + 1 : top; i < bottom; ++i)
                        image[j * stride + i] = block[i * stride + j];
                continue;
            }
            // By way of `tile`: rows of a matrix fall into few sets of a cache, where they drive each other out.
            for (int i = 0; i < TILE_ROWS; ++i)
                for (int j = 0; j < TILE_COLUMNS; ++j) tile[i][j] = block[(top + i) * stride + left + j];
            for (int j = 0; j < TILE_COLUMNS; ++j)
                for (int i = 0; i < TILE_ROWS; ++i) image[(left + j) * stride + top + i] = tile[i][j];
        }
    }
}

// --- patches -------------------------------------------------------------------------------------------

#define PATCH ((int64)k * k * channels)
#define IMAGE ((int64)height * width * channels)
#define WIDE 8  // values that are copied at a time

// A run is a row of a patch: k pixels of all channels, in one piece in patch and image. Values `from` to `to` of it lie
// inside the image, at `first` less `from`.
typedef struct {
    int64 first, from, to;
} Run;

static inline Run run_of(int row, int column, int i, WINDOW) {
    int h = row * s + i - top, w = column * s - left;
    int from = w < 0 ? -w : 0, to = w + k > width ? width - w : k;
    Run run = {0, 0, 0};
    (void)rows, (void)columns;
    if (h < 0 || h >= height || to <= from) return run;
    run.first = ((int64)h * width + w + from) * channels;
    run.from = (int64)from * channels;
    run.to = (int64)to * channels;
    return run;
}

// Patches number `first` to `last` of one image.
LOOP cut_some(const REAL* restrict x, REAL* restrict patches, int first, int last, WINDOW) {
    int64 length = (int64)k * channels;
    REAL* out = patches;
    for (int t = first; t < last; ++t)
        for (int i = 0; i < k; ++i, out += length) {
            Run run = run_of(t / columns, t % columns, i, THE_WINDOW);
            const REAL* in = x + run.first;
            if (run.to - run.from == length && length >= WIDE) {
                for (int64 q = 0; q + WIDE <= length; q += WIDE) memcpy(out + q, in + q, WIDE * sizeof(REAL));
                memcpy(out + length - WIDE, in + length - WIDE, WIDE * sizeof(REAL));
                continue;
            }
            for (int64 q = 0; q < run.from; ++q) out[q] = 0;
            for (int64 q = run.from; q < run.to; ++q) out[q] = in[q - run.from];
            for (int64 q = run.to; q < length; ++q) out[q] = 0;
        }
}

LOOP add_some(const REAL* restrict patches, REAL* restrict x, int first, int last, WINDOW) {
    int64 length = (int64)k * channels;
    const REAL* in = patches;
    for (int t = first; t < last; ++t)
        for (int i = 0; i < k; ++i, in += length) {
            Run run = run_of(t / columns, t % columns, i, THE_WINDOW);
            REAL* out = x + run.first;
            for (int64 q = 0; q < run.to - run.from; ++q) out[q] += in[run.from + q];
        }
}

EXPORT void cut_patches(const REAL* restrict x, REAL* restrict patches, int64 n, WINDOW) {
    int positions = rows * columns;
    for (int64 b = 0; b < n / (positions * PATCH); ++b)
        cut_some(x + b * IMAGE, patches + b * positions * PATCH, 0, positions, THE_WINDOW);
}

EXPORT void add_patches(const REAL* restrict patches, REAL* restrict x, int64 n, WINDOW) {
    int positions = rows * columns;
    memset(x, 0, n * sizeof(REAL));
    for (int64 b = 0; b < n / IMAGE; ++b)
        add_some(patches + b * positions * PATCH, x + b * IMAGE, 0, positions, THE_WINDOW);
}

// --- products with patches -----------------------------------------------------------------------------
//
// By NumPy's own BLAS (`gemm`), of so many patches at a time that they stay in a cache: `memory` holds `some`. They may
// be those of several images: BLAS copies W into an order of its own for each product.

typedef void (*Gemm)(int order, int transA, int transB, int64 m, int64 n, int64 k, REAL alpha, const REAL* A,
                     int64 lda, const REAL* B, int64 ldb, REAL beta, REAL* C, int64 ldc);
enum { ROW_MAJOR = 101, AS_IS = 111, TRANSPOSED = 112 };

// How many of `all` patches are worked on at a time: as many each time, no more than `some`.
static inline int64 alike(int64 all, int64 some) {
    int64 times = (all + some - 1) / some;
    return times ? (all + times - 1) / times : 1;
}

// For patches number `first` to `last` of all images, counted through: those of one image after those of another.
#define OF_EACH_IMAGE(first, last, body)                                              \
    for (int64 at = first, next; at < last; at = next) {                              \
        int64 b = at / positions;                                                     \
        next = least((b + 1) * positions, last);                                      \
        int from = (int)(at - b * positions), to = (int)(next - b * positions);       \
        body;                                                                         \
    }

// a = x_p W: W (k k channels, u) of rows `ldw` apart.
EXPORT void patches_times(const REAL* restrict x, const REAL* restrict W, REAL* restrict a,
                          REAL* restrict memory, Gemm gemm, int64 samples, int some, int u, int ldw, WINDOW) {
    int64 positions = (int64)rows * columns, all = samples * positions, length = alike(all, some);
    for (int64 first = 0, last; first < all; first = last) {
        last = least(first + length, all);
        OF_EACH_IMAGE(first, last, cut_some(x + b * IMAGE, memory + (at - first) * PATCH, from, to, THE_WINDOW))
        gemm(ROW_MAJOR, AS_IS, AS_IS, last - first, u, PATCH, 1, memory, PATCH, W, ldw, 0, a + first * u, u);
    }
}

// P = d^T x_p, summed over positions and samples: P (u, k k channels).
EXPORT void times_patches(const REAL* restrict x, const REAL* restrict d, REAL* restrict P,
                          REAL* restrict memory, Gemm gemm, int64 samples, int some, int u, WINDOW) {
    int64 positions = (int64)rows * columns, all = samples * positions, length = alike(all, some);
    memset(P, 0, u * PATCH * sizeof(REAL));
    for (int64 first = 0, last; first < all; first = last) {
        last = least(first + length, all);
        OF_EACH_IMAGE(first, last, cut_some(x + b * IMAGE, memory + (at - first) * PATCH, from, to, THE_WINDOW))
        gemm(ROW_MAJOR, TRANSPOSED, AS_IS, u, PATCH, last - first, 1, d + first * u, u, memory,
             PATCH, 1, P, PATCH);
    }
}

// x = the sum over patches of d M: M (u, k k channels).
EXPORT void add_products(const REAL* restrict d, const REAL* restrict M, REAL* restrict x,
                         REAL* restrict memory, Gemm gemm, int64 samples, int some, int u, WINDOW) {
    int64 positions = (int64)rows * columns, all = samples * positions, length = alike(all, some);
    memset(x, 0, samples * IMAGE * sizeof(REAL));
    for (int64 first = 0, last; first < all; first = last) {
        last = least(first + length, all);
        gemm(ROW_MAJOR, AS_IS, AS_IS, last - first, PATCH, u, 1, d + first * u, u, M, PATCH, 0, memory, PATCH);
        OF_EACH_IMAGE(first, last, add_some(memory + (at - first) * PATCH, x + b * IMAGE, from, to, THE_WINDOW))
    }
}
