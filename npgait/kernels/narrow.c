// Products of patches with a narrow W, straight from the image: no patch is ever written.
//
// BLAS is at half of its speed where a matrix has no more than 32 columns, and the patches of a first convolution are
// several times the size of its images. Here a tile of the result stays in registers while all that goes into it is
// read. For processors with AVX-512, whose registers hold it.
//
// A processor reads eight bytes from anywhere into all of a register at once: PAIR values next to each other. So a
// register holds eight channels, PAIR values of each: for x_p W partial sums over the first and the second of each pair
// of values of a patch, for x_p^T d two rows of the result. No part of it is idle at 24 channels, as a half would be
// with sixteen channels to a register.

#include <string.h>

#include "loops.h"

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#define TILES 1
#define PAIR (8 / (int)sizeof(REAL))
typedef REAL Vector __attribute__((vector_size(64), aligned(sizeof(REAL))));
typedef int64 Eights __attribute__((vector_size(64)));
typedef int Halves __attribute__((vector_size(32)));
typedef int64 Eight __attribute__((aligned(sizeof(REAL)), may_alias));
#define EVERYWHERE(at) ((Vector)((Eights){0} + *(const Eight*)(at)))
// A product and its sum are rounded once, as in BLAS.
#define TILED __attribute__((target("avx512f"), optimize("O3", "fp-contract=fast")))
#define TILE TILED static inline __attribute__((always_inline)) void
#define UNROLL _Pragma("GCC unroll 9")
#else
#define TILES 0
#endif
#define ROWS 9     // most rows of a tile
#define VECTORS 4  // most registers that one is wide
#define BAND 24000 // bytes of d that are read again and again, from the nearest cache

// The tiles there are: R rows of V registers, all of which and V + 1 more the processor has.
#define EACH_TILE(DO) DO(6, 2) DO(7, 2) DO(9, 2) DO(6, 3) DO(7, 3) DO(9, 3) DO(6, 4)

// Returns how many values a pair has; 0 where this processor has no use for tiles.
EXPORT int tile_pair(void) {
#if TILES
    return __builtin_cpu_supports("avx512f") ? PAIR : 0;
#else
    return 0;
#endif
}

#if TILES

// acc[r, :] = sum over i and q of x[r step + i pitch + q] W[i, q, :], q < length, a pair of them at a time.
TILE image_times(int R, int V, const REAL* x, int64 step, int64 pitch, int k, int64 length, const REAL* W,
                 Vector acc[ROWS][VECTORS]) {
    UNROLL for (int r = 0; r < R; ++r)
        UNROLL for (int c = 0; c < V; ++c) acc[r][c] = (Vector){0};
    for (int i = 0; i < k; ++i, x += pitch)
        for (int64 q = 0; q < length; q += PAIR, W += 8 * V * PAIR) {
            const Vector* w = (const Vector*)W;
            UNROLL for (int r = 0; r < R; ++r) {
                Vector pair = EVERYWHERE(x + r * step + q);
                UNROLL for (int c = 0; c < V; ++c) acc[r][c] += pair * w[c];
            }
        }
}

// sums[r, :] += sum over positions of x[position + r] d[position, :], r a pair.
TILE times_image(int R, int V, const REAL* x, int64 step, int64 pitch, int rows, int columns, const REAL* d,
                 Vector* sums) {
    Vector acc[ROWS][VECTORS];
    UNROLL for (int r = 0; r < R; ++r)
        UNROLL for (int c = 0; c < V; ++c) acc[r][c] = sums[r * V + c];
    for (int row = 0; row < rows; ++row)
        for (int column = 0; column < columns; ++column, d += 8 * V * PAIR) {
            const REAL* here = x + row * pitch + column * step;
            const Vector* v = (const Vector*)d;
            UNROLL for (int r = 0; r < R; ++r) {
                Vector pair = EVERYWHERE(here + r * PAIR);
                UNROLL for (int c = 0; c < V; ++c) acc[r][c] += pair * v[c];
            }
        }
    UNROLL for (int r = 0; r < R; ++r)
        UNROLL for (int c = 0; c < V; ++c) sums[r * V + c] = acc[r][c];
}

// How many values n are in whole pairs.
static inline int64 in_pairs(int64 n) { return (n + PAIR - 1) / PAIR * PAIR; }

// Returns where the first line of a cache begins in `memory`: half of the registers read from elsewhere lie on two.
static REAL* on_a_line(REAL* memory) { return (REAL*)(((size_t)memory + 63) / 64 * 64); }

// Copies one image into the middle of zeros, of which `high` rows of `pitch` values are read.
static void pad(const REAL* x, REAL* padded, int high, int64 pitch, int height, int width, int channels, int top,
                int left) {
    int64 wide = least(pitch / channels - left, width);
    for (int h = 0; h < height && h + top < high; ++h)
        memcpy(padded + (h + top) * pitch + left * channels, x + (int64)h * width * channels,
               wide * channels * sizeof(REAL));
}

// Writes each of u values PAIR times. A function of its own, where compilers know that d and out are apart.
TILED __attribute__((noinline)) static void repeat(const REAL* restrict d, REAL* restrict out, int64 u) {
    for (int64 c = 0; c < u; ++c)
        for (int64 p = 0; p < PAIR; ++p) out[c * PAIR + p] = d[c];
}

// Adds up the pairs of V registers and writes the first u sums.
TILE write_sums(int V, const Vector* acc, REAL* out, int u) {
    REAL some[8 * VECTORS], *sums = u == 8 * V ? out : some;
    UNROLL for (int c = 0; c < V; ++c) {
        Eights second = (Eights)acc[c] >> 32;  // of each pair, in the place of the first
        Halves sum = __builtin_convertvector((Eights)(acc[c] + (Vector)second), Halves);
        if (PAIR > 1) memcpy(sums + 8 * c, &sum, sizeof sum);
        else memcpy(sums + 8 * c, &acc[c], sizeof acc[c]);
    }
    for (int c = 0; sums == some && c < u; ++c) out[c] = some[c];
}

TILE patches_times_tiles(int R, int V, const REAL* x, const REAL* W, REAL* a, REAL* memory, int64 samples, int u,
                         WINDOW) {
    int tiles = (columns + R - 1) / R, high = (rows - 1) * s + k;
    int64 step = (int64)s * channels, pitch = (tiles * R - 1) * step + k * channels;
    int64 size_of_W = k * in_pairs((int64)k * channels) * 8 * V;
    REAL *aligned = on_a_line(memory), *image = aligned + size_of_W;
    W = memcpy(aligned, W, size_of_W * sizeof(REAL));
    memset(image, 0, (high * pitch + PAIR) * sizeof(REAL));
    for (int64 b = 0; b < samples; ++b, x += (int64)height * width * channels) {
        pad(x, image, high, pitch, height, width, channels, top, left);
        for (int row = 0; row < rows; ++row)
            for (int first = 0; first < columns; first += R) {
                Vector acc[ROWS][VECTORS];
                image_times(R, V, image + row * s * pitch + first * step, step, pitch, k, (int64)k * channels, W, acc);
                UNROLL for (int r = 0; r < R; ++r)
                    if (first + r < columns) write_sums(V, acc[r], a + r * u, u);
                a += least(R, columns - first) * u;
            }
    }
}

TILE tiles_times_patches(int R, int V, const REAL* x, const REAL* d, REAL* P, REAL* memory, int64 samples, int u,
                         WINDOW) {
    int high = (rows - 1) * s + k, width_of_d = 8 * V * PAIR;
    int64 step = (int64)s * channels, length = (int64)k * channels, pitch = (columns - 1) * step + length;
    int64 tiles = (length + R * PAIR - 1) / (R * PAIR), padded = high * pitch + tiles * R * PAIR;
    int64 some = least(rows, BAND / (columns * width_of_d * (int64)sizeof(REAL)));
    some = some < 1 ? 1 : some;
    REAL *band = on_a_line(memory), *sums = band + some * columns * width_of_d;
    REAL* image = sums + k * tiles * R * width_of_d;
    memset(band, 0, (padded + (some * columns + k * tiles * R) * width_of_d) * sizeof(REAL));
    for (int64 b = 0; b < samples; ++b, x += (int64)height * width * channels) {
        pad(x, image, high, pitch, height, width, channels, top, left);
        for (int row = 0; row < rows; row += some) {
            int more = (int)least(some, rows - row);
            for (int64 t = 0; t < (int64)more * columns; ++t, d += u) repeat(d, band + t * width_of_d, u);
            REAL* sum = sums;
            for (int i = 0; i < k; ++i)
                for (int64 q = 0; q < tiles; ++q, sum += R * width_of_d)
                    times_image(R, V, image + (row * s + i) * pitch + q * R * PAIR, step, s * pitch, more, columns,
                                band, (Vector*)sum);
        }
    }
    for (int i = 0; i < k; ++i)
        for (int64 q = 0; q < length; ++q)
            for (int c = 0; c < u; ++c)
                P[(i * length + q) * u + c] =
                    sums[(i * tiles * R + q / PAIR) * width_of_d + c * PAIR + q % PAIR];
}

// Pixel s q + phase of the padded image lies under the patches at q, q - 1 ..., which hold it at phase, phase + s ...:
// so many of them in one direction.
static inline int patches_over(int phase, int k, int s) { return phase < k ? (k - phase + s - 1) / s : 0; }

TILE add_products_tiles(int R, int V, const REAL* d, const REAL* M, REAL* x, REAL* memory, int64 samples, int u,
                        WINDOW) {
    int t = patches_over(0, k, s), first_row = top / s, first_column = left / s;
    int high = (top + height - 1) / s - first_row + 1, wide = (left + width - 1) / s - first_column + 1;
    int64 pitch = ((wide + R - 1) / R * R + t - 1) * (int64)u, size_of_M = 0;
    for (int j = 0; j < s; ++j) size_of_M += k * in_pairs((int64)patches_over(j, k, s) * u) * 8 * V;
    REAL *aligned = on_a_line(memory), *padded = aligned + size_of_M;
    memcpy(aligned, M, size_of_M * sizeof(REAL));
    memset(padded, 0, ((high + t - 1) * pitch + PAIR) * sizeof(REAL));
    for (int64 b = 0; b < samples; ++b, d += (int64)rows * columns * u, x += (int64)height * width * channels) {
        pad(d, padded, high + t - 1, pitch, rows, columns, u, t - 1 - first_row, t - 1 - first_column);
        for (int q = 0; q < high; ++q) {
            M = aligned;
            for (int phase = 0; phase < s * s; ++phase) {
                int i = phase / s, j = phase % s, over = patches_over(i, k, s), beside = patches_over(j, k, s);
                int h = (first_row + q) * s + i - top;
                for (int first = 0; first < wide && 0 <= h && h < height; first += R) {
                    Vector acc[ROWS][VECTORS];
                    image_times(R, V, padded + (q + t - over) * pitch + (first + t - beside) * u, u, pitch, over,
                                (int64)beside * u, M, acc);
                    UNROLL for (int r = 0; r < R; ++r) {
                        int w = (first_column + first + r) * s + j - left;
                        if (0 <= w && w < width) write_sums(V, acc[r], x + ((int64)h * width + w) * channels, channels);
                    }
                }
                M += over * in_pairs((int64)beside * u) * 8 * V;
            }
        }
    }
}

// a = x_p W, in tiles of `tall` positions by `wide` channels, of which u count: W (k, ceil(k channels / PAIR), wide,
// PAIR). `memory` holds a padded image and PAIR values more: where k channels is odd, zeros of W meet the pixel behind.
EXPORT TILED void patches_times_narrow(const REAL* x, const REAL* W, REAL* a, REAL* memory, int64 samples, int u,
                                       int tall, int wide, WINDOW) {
#define PATCHES_TIMES(R, V)             \
    if (tall == R && wide == 8 * V)     \
        patches_times_tiles(R, V, x, W, a, memory, samples, u, height, width, channels, k, s, top, left, rows, columns);
    EACH_TILE(PATCHES_TIMES)
}

// P = x_p^T d, summed over positions and samples, in tiles of `tall` pairs by `wide` channels: P (k k channels, u).
// `memory` holds a padded image and a tile's rows more, d at some rows of positions, and P in tiles.
EXPORT TILED void narrow_times_patches(const REAL* x, const REAL* d, REAL* P, REAL* memory, int64 samples, int u,
                                       int tall, int wide, WINDOW) {
#define TIMES_PATCHES(R, V)             \
    if (tall == R && wide == 8 * V)     \
        tiles_times_patches(R, V, x, d, P, memory, samples, u, height, width, channels, k, s, top, left, rows, columns);
    EACH_TILE(TIMES_PATCHES)
}

// x = the sum over patches of d M, in gather form and in tiles of `tall` pixels of one phase by `wide` channels: M
// (over, ceil(beside u / PAIR), wide, PAIR) of each phase of rows and columns. `memory` holds M and a padded d.
EXPORT TILED void add_products_narrow(const REAL* d, const REAL* M, REAL* x, REAL* memory, int64 samples, int u,
                                      int tall, int wide, WINDOW) {
#define ADD_PRODUCTS(R, V)              \
    if (tall == R && wide == 8 * V)     \
        add_products_tiles(R, V, d, M, x, memory, samples, u, height, width, channels, k, s, top, left, rows, columns);
    EACH_TILE(ADD_PRODUCTS)
}

#endif
