// Products of patches straight from the image, in tiles: no patch is ever written.
//
// The patches of a convolution are several times the size of its images, and BLAS is at half of its speed where a matrix
// has a few dozen columns. Here a tile of the result stays in registers while all that goes into it is read: those of
// AVX-512, or of AVX2 (tiles_avx2.c), which are half as many and half as wide.
//
// A processor reads eight bytes from anywhere into all of a register at once: PAIR values next to each other. So a
// register holds LANES channels, PAIR values of each: for x_p W partial sums over the first and the second of each pair
// of values of a patch, for x_p^T d two rows of the result. No part of it is idle at 24 channels, as a half would be
// with sixteen channels to one of eight lanes. More channels than a tile has are made a tile after the other.

#include <string.h>

#include "loops.h"

#ifndef LANES
#define LANES 8 // of eight bytes each
#endif
#define NAME(name) JOINED(name, LANES)
#define JOINED(name, lanes) AND_JOINED(name, lanes)
#define AND_JOINED(name, lanes) name##_##lanes

// The tiles there are: R rows of V registers, all of which and V + 1 more the processor has. HEIGHTS, BAND and POSITIONS
// in patch_loops.py say the same.
#if LANES == 8
#define TARGET "avx512f"
#define EACH_TILE(DO) DO(6, 2) DO(7, 2) DO(9, 2) DO(6, 3) DO(7, 3) DO(9, 3) DO(6, 4)
#else
#define TARGET "avx2,fma"
#define EACH_TILE(DO) DO(5, 2) DO(6, 2) DO(4, 3)
#endif
#define ROWS 9        // most rows of a tile
#define VECTORS 4     // most registers that one is wide
#define POSITIONS 126 // at a time, from which one part of W after the other is read: tiles of 6, 7 or 9 of them
#define BAND 24000    // bytes of d that are read again and again, from the nearest cache

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#define TILES 1
#define PAIR (8 / (int)sizeof(REAL))
typedef REAL Vector __attribute__((vector_size(8 * LANES), aligned(sizeof(REAL))));
typedef unsigned long long Eights __attribute__((vector_size(8 * LANES)));
typedef int Halves __attribute__((vector_size(4 * LANES)));
typedef unsigned long long Eight __attribute__((aligned(sizeof(REAL)), may_alias));
#define EVERYWHERE(at) ((Vector)((Eights){0} + *(const Eight*)(at)))
// A product and its sum are rounded once, as in BLAS.
#define TILED __attribute__((target(TARGET), optimize("O3", "fp-contract=fast")))
#define TILE TILED static inline __attribute__((always_inline)) void
#define UNROLL _Pragma("GCC unroll 9")
#else
#define TILES 0
#endif

#if LANES == 8
// Returns how many lanes the registers of this processor have; 0 where it has no use for tiles.
EXPORT int tile_lanes(void) {
#if TILES
    if (__builtin_cpu_supports("avx512f")) return 8;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 4;
#endif
    return 0;
}
#endif

#if TILES

// acc[r, :] = sum over i and q of at[r][i pitch + q] W[i, q, :], q < length, a pair of them at a time.
TILE image_times(int R, int V, const REAL* const at[ROWS], int64 pitch, int k, int64 length, const REAL* W,
                 Vector acc[ROWS][VECTORS]) {
    const REAL* x[ROWS];
    UNROLL for (int r = 0; r < R; ++r) x[r] = at[r];
    UNROLL for (int r = 0; r < R; ++r)
        UNROLL for (int c = 0; c < V; ++c) acc[r][c] = (Vector){0};
    for (int i = 0; i < k; ++i) {
        for (int64 q = 0; q < length; q += PAIR, W += LANES * V * PAIR) {
            const Vector* w = (const Vector*)W;
            UNROLL for (int r = 0; r < R; ++r) {
                Vector pair = EVERYWHERE(x[r] + q);
                UNROLL for (int c = 0; c < V; ++c) acc[r][c] += pair * w[c];
            }
        }
        UNROLL for (int r = 0; r < R; ++r) x[r] += pitch;
    }
}

// sums[r, :] += sum over positions of x[position + r] d[position, :], r a pair.
TILE times_image(int R, int V, const REAL* x, int64 step, int64 pitch, int rows, int columns, const REAL* d,
                 Vector* sums) {
    Vector acc[ROWS][VECTORS];
    UNROLL for (int r = 0; r < R; ++r)
        UNROLL for (int c = 0; c < V; ++c) acc[r][c] = sums[r * V + c];
    for (int row = 0; row < rows; ++row)
        for (int column = 0; column < columns; ++column, d += LANES * V * PAIR) {
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

// How many rows of so many positions are worked on before what they need of W is read again.
static inline int64 rows_at_a_time(int columns) { return columns < POSITIONS ? POSITIONS / columns : 1; }

// Writes each of u values PAIR times. A function of its own, where compilers know that d and out are apart.
TILED __attribute__((noinline)) static void repeat(const REAL* restrict d, REAL* restrict out, int64 u) {
    for (int64 c = 0; c < u; ++c)
        for (int64 p = 0; p < PAIR; ++p) out[c * PAIR + p] = d[c];
}

// Adds up the pairs of V registers and writes the first u sums.
TILE write_sums(int V, const Vector* acc, REAL* out, int u) {
    REAL some[LANES * VECTORS], *sums = u == LANES * V ? out : some;
    UNROLL for (int c = 0; c < V; ++c) {
        Eights second = (Eights)acc[c] >> 32;  // of each pair, in the place of the first
        Halves sum = __builtin_convertvector((Eights)(acc[c] + (Vector)second), Halves);
        if (PAIR > 1) memcpy(sums + LANES * c, &sum, sizeof sum);
        else memcpy(sums + LANES * c, &acc[c], sizeof acc[c]);
    }
    for (int c = 0; sums == some && c < u; ++c) out[c] = some[c];
}

TILE patches_times_tiles(int R, int V, const REAL* x, const REAL* W, REAL* a, REAL* memory, int64 samples, int u,
                         WINDOW) {
    int high = (rows - 1) * s + k;
    int64 step = (int64)s * channels, length = (int64)k * channels, pitch = (columns - 1) * step + length;
    int64 size_of_W = k * in_pairs(length), some = rows_at_a_time(columns);
    memset(memory, 0, (high * pitch + PAIR) * sizeof(REAL));
    for (int64 b = 0; b < samples; ++b, x += (int64)height * width * channels) {
        pad(x, memory, high, pitch, height, width, channels, top, left);
        for (int64 row = 0; row < rows; row += some) {
            int positions = (int)least(some, rows - row) * columns;
            for (int c = 0; c < u; c += LANES * V)
                for (int first = 0; first < positions; first += R) {
                    const REAL* at[ROWS];
                    Vector acc[ROWS][VECTORS];
                    UNROLL for (int r = 0; r < R; ++r) {
                        int t = (int)least(first + r, positions - 1);
                        at[r] = memory + (row + t / columns) * s * pitch + t % columns * step;
                    }
                    image_times(R, V, at, pitch, k, length, W + c * size_of_W, acc);
                    UNROLL for (int r = 0; r < R; ++r)
                        if (first + r < positions)
                            write_sums(V, acc[r], a + (int64)(first + r) * u + c, (int)least(LANES * V, u - c));
                }
            a += (int64)positions * u;
        }
    }
}

TILE times_patches_tiles(int R, int V, const REAL* x, const REAL* d, REAL* P, REAL* memory, int64 samples, int u,
                         WINDOW) {
    int high = (rows - 1) * s + k, width_of_d = LANES * V * PAIR;
    int64 step = (int64)s * channels, length = (int64)k * channels, pitch = (columns - 1) * step + length;
    int64 tiles = (length + R * PAIR - 1) / (R * PAIR), padded = high * pitch + tiles * R * PAIR;
    int64 block = k * tiles * R * width_of_d, blocks = (u + LANES * V - 1) / (LANES * V);
    int64 some = least(rows, BAND / (columns * width_of_d * (int64)sizeof(REAL)));
    some = some < 1 ? 1 : some;
    REAL *band = on_a_line(memory), *sums = band + some * columns * width_of_d, *image = sums + blocks * block;
    memset(band, 0, (some * columns * width_of_d + blocks * block + padded) * sizeof(REAL));
    for (int64 b = 0; b < samples; ++b, x += (int64)height * width * channels) {
        pad(x, image, high, pitch, height, width, channels, top, left);
        for (int row = 0; row < rows; row += some) {
            int more = (int)least(some, rows - row);
            for (int c = 0; c < u; c += LANES * V) {
                for (int64 t = 0; t < (int64)more * columns; ++t)
                    repeat(d + t * u + c, band + t * width_of_d, least(LANES * V, u - c));
                REAL* sum = sums + c / (LANES * V) * block;
                for (int i = 0; i < k; ++i)
                    for (int64 q = 0; q < tiles; ++q, sum += R * width_of_d)
                        times_image(R, V, image + (row * s + i) * pitch + q * R * PAIR, step, s * pitch, more,
                                    columns, band, (Vector*)sum);
            }
            d += (int64)more * columns * u;
        }
    }
    for (int i = 0; i < k; ++i)
        for (int64 q = 0; q < length; ++q)
            for (int c = 0; c < u; ++c)
                P[(i * length + q) * u + c] = sums[c / (LANES * V) * block + (i * tiles * R + q / PAIR) * width_of_d +
                                                   c % (LANES * V) * PAIR + q % PAIR];
}

// Pixel s q + phase of the padded image lies under the patches at q, q - 1 ..., which hold it at phase, phase + s ...:
// so many of them in one direction.
static inline int patches_over(int phase, int k, int s) { return phase < k ? (k - phase + s - 1) / s : 0; }

TILE add_products_tiles(int R, int V, const REAL* d, const REAL* M, REAL* x, REAL* memory, int64 samples, int u,
                        WINDOW) {
    int t = patches_over(0, k, s), first_row = top / s, first_column = left / s;
    int high = (top + height - 1) / s - first_row + 1, wide = (left + width - 1) / s - first_column + 1;
    int64 pitch = (int64)(wide + t - 1) * u, some = rows_at_a_time(wide);
    int64 blocks = (channels + LANES * V - 1) / (LANES * V);
    memset(memory, 0, ((high + t - 1) * pitch + PAIR) * sizeof(REAL));
    for (int64 b = 0; b < samples; ++b, d += (int64)rows * columns * u, x += (int64)height * width * channels) {
        pad(d, memory, high + t - 1, pitch, rows, columns, u, t - 1 - first_row, t - 1 - first_column);
        for (int64 row = 0; row < high; row += some) {
            int pixels = (int)least(some, high - row) * wide;
            const REAL* M_phase = M;
            for (int phase = 0; phase < s * s; ++phase) {
                int i = phase / s, j = phase % s, over = patches_over(i, k, s), beside = patches_over(j, k, s);
                int64 length = (int64)beside * u, size_of_M = over * in_pairs(length);
                for (int c = 0; c < channels; c += LANES * V)
                    for (int first = 0; first < pixels; first += R) {
                        const REAL* at[ROWS];
                        Vector acc[ROWS][VECTORS];
                        UNROLL for (int r = 0; r < R; ++r) {
                            int q = (int)least(first + r, pixels - 1);
                            at[r] = memory + (row + q / wide + t - over) * pitch + (q % wide + t - beside) * u;
                        }
                        image_times(R, V, at, pitch, over, length, M_phase + c * size_of_M, acc);
                        UNROLL for (int r = 0; r < R; ++r) {
                            int64 h = (first_row + row + (first + r) / wide) * s + i - top;
                            int64 w = (first_column + (first + r) % wide) * s + j - left;
                            if (first + r < pixels && 0 <= h && h < height && 0 <= w && w < width)
                                write_sums(V, acc[r], x + (h * width + w) * channels + c,
                                           (int)least(LANES * V, channels - c));
                        }
                    }
                M_phase += blocks * LANES * V * size_of_M;
            }
        }
    }
}

// Writes u values of PAIR rows by turns. A function of its own, as `repeat` is.
TILED __attribute__((noinline)) static void interleave(const REAL* first, const REAL* second, REAL* restrict out,
                                                       int64 u) {
    for (int64 c = 0; c < u; ++c) {
        out[c * PAIR] = first[c];
        if (PAIR > 1) out[c * PAIR + 1] = second[c];
    }
}

// Writes rows of W where tiles read them: out (ceil(u / wide), over, ceil(beside n / PAIR), wide, PAIR). Row (i, j, v)
// begins `by_over` i + `by_beside` j + `by_row` v values behind W. What no row fills stays as it is.
TILED static void lay_out(const REAL* W, REAL* out, int over, int64 by_over, int beside, int64 by_beside, int64 n,
                          int64 by_row, int u, int wide) {
    const REAL zeros[LANES * VECTORS] = {0};
    for (int first = 0; first < u; first += wide)
        for (int i = 0; i < over; ++i)
            for (int64 row = 0; row < beside * n; row += PAIR, out += wide * PAIR) {
                const REAL* pair[2];
                for (int p = 0; p < PAIR; ++p) {
                    int64 j = (row + p) / n, v = (row + p) % n;
                    pair[p] = j < beside ? W + i * by_over + j * by_beside + v * by_row + first : zeros;
                }
                interleave(pair[0], pair[PAIR - 1], out, least(wide, u - first));
            }
}

// W (k k channels, u) of rows `ldw` apart as patches_times_in_tiles takes it, M (u, k k channels) as
// add_products_in_tiles does; `out` full of zeros.
EXPORT void NAME(lay_out_patches)(const REAL* W, REAL* out, int u, int ldw, int wide, WINDOW) {
    int64 n = (int64)k * channels;
    (void)height, (void)width, (void)s, (void)top, (void)left, (void)rows, (void)columns;
    lay_out(W, out, k, n * ldw, 1, 0, n, ldw, u, wide);
}

EXPORT void NAME(lay_out_phases)(const REAL* M, REAL* out, int u, int wide, WINDOW) {
    int64 row = (int64)k * channels, pixel = channels, blocks = (channels + wide - 1) / wide;
    (void)height, (void)width, (void)top, (void)left, (void)rows, (void)columns;
    for (int phase = 0; phase < s * s; ++phase) {
        int i = phase / s, j = phase % s, over = patches_over(i, k, s), beside = patches_over(j, k, s);
        const REAL* last = M + ((over - 1) * s + i) * row + ((beside - 1) * s + j) * pixel;
        lay_out(last, out, over, -s * row, beside, -s * pixel, u, k * row, channels, wide);
        out += blocks * wide * over * in_pairs((int64)beside * u);
    }
}

// a = x_p W, in tiles of `tall` positions by `wide` channels: W (ceil(u / wide), k, ceil(k channels / PAIR), wide, PAIR).
// `memory` holds a padded image and PAIR values more: where k channels is odd, zeros of W meet the pixel behind.
EXPORT TILED void NAME(patches_times_in_tiles)(const REAL* x, const REAL* W, REAL* a, REAL* memory, int64 samples,
                                                int u, int tall, int wide, WINDOW) {
#define PATCHES_TIMES(R, V)             \
    if (tall == R && wide == LANES * V) \
        patches_times_tiles(R, V, x, W, a, memory, samples, u, THE_WINDOW);
    EACH_TILE(PATCHES_TIMES)
}

// P = x_p^T d, summed over positions and samples, in tiles of `tall` pairs by `wide` channels: P (k k channels, u).
// `memory` holds a padded image and a tile's rows more, d at some rows of positions, and P in tiles.
EXPORT TILED void NAME(times_patches_in_tiles)(const REAL* x, const REAL* d, REAL* P, REAL* memory, int64 samples,
                                                int u, int tall, int wide, WINDOW) {
#define TIMES_PATCHES(R, V)             \
    if (tall == R && wide == LANES * V) \
        times_patches_tiles(R, V, x, d, P, memory, samples, u, THE_WINDOW);
    EACH_TILE(TIMES_PATCHES)
}

// x = the sum over patches of d M, in gather form and in tiles of `tall` pixels of one phase by `wide` channels: M
// (ceil(channels / wide), over, ceil(beside u / PAIR), wide, PAIR) of each phase of rows and columns. `memory` holds a
// padded d and PAIR values more.
EXPORT TILED void NAME(add_products_in_tiles)(const REAL* d, const REAL* M, REAL* x, REAL* memory, int64 samples,
                                                int u, int tall, int wide, WINDOW) {
#define ADD_PRODUCTS(R, V)              \
    if (tall == R && wide == LANES * V) \
        add_products_tiles(R, V, d, M, x, memory, samples, u, THE_WINDOW);
    EACH_TILE(ADD_PRODUCTS)
}

#endif
