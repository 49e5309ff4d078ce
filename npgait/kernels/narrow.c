// Products of patches with a narrow W, straight from the image: no patch is ever written.
//
// BLAS is at half of its speed where a matrix has no more than 32 columns, and the patches of a first convolution are
// several times the size of its images. Here a tile of the result, ROWS positions by WIDE channels, stays in
// registers while all that goes into it is read. For processors with AVX-512, whose registers hold it.

#include <string.h>

#include "loops.h"

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#define VECTORS 2
#define LANES (64 / (int)sizeof(REAL))
typedef REAL Vector __attribute__((vector_size(64), aligned(sizeof(REAL))));
// A product and its sum are rounded once, as in BLAS.
#define TILED __attribute__((target("avx512f"), optimize("O3", "fp-contract=fast")))
#define TILE TILED static inline __attribute__((always_inline)) void
#define UNROLL _Pragma("GCC unroll 14")
#else
#define VECTORS 0
#define LANES 0
#endif
#define ROWS 14
#define WIDE (VECTORS * LANES)

// Returns how many channels a tile is wide; 0 where this processor has no use for tiles.
EXPORT int tile_width(void) {
#if VECTORS
    return __builtin_cpu_supports("avx512f") ? WIDE : 0;
#else
    return 0;
#endif
}

EXPORT int tile_rows(void) { return ROWS; }

#if VECTORS

// acc[r, :] = sum over i and q of x[r step + i pitch + q] W[i, q, :], q < length.
TILE image_times(const REAL* x, int64 step, int64 pitch, int k, int64 length, const REAL* W,
                 Vector acc[ROWS][VECTORS]) {
    UNROLL for (int r = 0; r < ROWS; ++r)
        UNROLL for (int c = 0; c < VECTORS; ++c) acc[r][c] = (Vector){0};
    for (int i = 0; i < k; ++i, x += pitch)
        for (int64 q = 0; q < length; ++q, W += WIDE) {
            const Vector* w = (const Vector*)W;
            UNROLL for (int r = 0; r < ROWS; ++r)
                UNROLL for (int c = 0; c < VECTORS; ++c) acc[r][c] += x[r * step + q] * w[c];
        }
}

// acc[r, :] = sum over positions of x[position + r] d[position, :].
TILE times_image(const REAL* x, int64 step, int64 pitch, int rows, int columns, const REAL* d,
                 Vector acc[ROWS][VECTORS]) {
    UNROLL for (int r = 0; r < ROWS; ++r)
        UNROLL for (int c = 0; c < VECTORS; ++c) acc[r][c] = (Vector){0};
    for (int row = 0; row < rows; ++row)
        for (int column = 0; column < columns; ++column, d += WIDE) {
            const REAL* here = x + row * pitch + column * step;
            const Vector* v = (const Vector*)d;
            UNROLL for (int r = 0; r < ROWS; ++r)
                UNROLL for (int c = 0; c < VECTORS; ++c) acc[r][c] += here[r] * v[c];
        }
}

// Copies one image into the middle of zeros, of which `high` rows of `pitch` values are filled.
static void pad(const REAL* x, REAL* padded, int high, int64 pitch, int height, int width, int channels, int top,
                int left) {
    int64 wide = least(pitch / channels - left, width);
    memset(padded, 0, high * pitch * sizeof(REAL));
    for (int h = 0; h < height && h + top < high; ++h)
        memcpy(padded + (h + top) * pitch + left * channels, x + (int64)h * width * channels,
               wide * channels * sizeof(REAL));
}

// a = x_p W: W (k k channels, WIDE), of which u columns count; `memory` holds a padded image.
EXPORT TILED void patches_times_narrow(const REAL* x, const REAL* W, REAL* a, REAL* memory, int64 samples, int u,
                                       WINDOW) {
    int tiles = (columns + ROWS - 1) / ROWS, high = (rows - 1) * s + k;
    int64 step = (int64)s * channels, pitch = (tiles * ROWS - 1) * step + k * channels;
    for (int64 b = 0; b < samples; ++b, x += (int64)height * width * channels) {
        pad(x, memory, high, pitch, height, width, channels, top, left);
        for (int row = 0; row < rows; ++row)
            for (int first = 0; first < columns; first += ROWS) {
                Vector acc[ROWS][VECTORS];
                image_times(memory + row * s * pitch + first * step, step, pitch, k, (int64)k * channels, W, acc);
                for (int r = 0; r < ROWS && first + r < columns; ++r, a += u) memcpy(a, acc[r], u * sizeof(REAL));
            }
    }
}

// P = x_p^T d, summed over positions and samples: P (k k channels, u), k channels at least ROWS. `memory` holds a
// padded image, and d of one sample in rows of WIDE.
EXPORT TILED void narrow_times_patches(const REAL* x, const REAL* d, REAL* P, REAL* memory, int64 samples, int u,
                                       WINDOW) {
    int high = (rows - 1) * s + k;
    int64 step = (int64)s * channels, length = (int64)k * channels;
    int64 pitch = (columns - 1) * step + length;
    REAL* wide = memory + high * pitch;
    memset(P, 0, k * length * u * sizeof(REAL));
    memset(wide, 0, (int64)rows * columns * WIDE * sizeof(REAL));
    for (int64 b = 0; b < samples; ++b, x += (int64)height * width * channels) {
        pad(x, memory, high, pitch, height, width, channels, top, left);
        for (int t = 0; t < rows * columns; ++t, d += u) memcpy(wide + (int64)t * WIDE, d, u * sizeof(REAL));
        for (int i = 0; i < k; ++i)
            for (int64 q = 0; q < length; q += ROWS) {
                Vector acc[ROWS][VECTORS];
                int64 from = q + ROWS <= length ? q : length - ROWS;  // the last tile begins before
                times_image(memory + i * pitch + from, step, s * pitch, rows, columns, wide, acc);
                for (int64 r = q - from; r < ROWS; ++r) {
                    REAL* sum = P + (i * length + from + r) * u;
                    const REAL* more = (const REAL*)acc[r];
                    for (int c = 0; c < u; ++c) sum[c] += more[c];
                }
            }
    }
}

#endif
