// Patches of images, cut out (im2col) and added back (col2im), both in gather form: each thread makes one value
// of the result and reads what it needs. No atomics, so a result repeats bit for bit.
//
// REAL is float or double. Images are (B, H, W, C); patches (B*rows*columns, k*k*C), in (row, column, channel)
// order. k is the kernel, s the stride, top and left the padding before the first row and column.
//
// Most of the work is to take an index apart, and a GPU divides 32 bits several times as fast as 64: `Index` is
// unsigned where it holds every index of patches and images.

#define WINDOW int height, int width, int channels, int k, int s, int top, int left, int rows, int columns
#define THE_WINDOW height, width, channels, k, s, top, left, rows, columns
#define FOR_EACH(number, n)                                                                                  \
    for (long long number = (long long)blockIdx.x * blockDim.x + threadIdx.x; number < (n);                  \
         number += (long long)gridDim.x * blockDim.x)

// Whether 32 bits hold the indices of n values, and of what they are made from: `from` values for each `to` of n.
static __device__ __forceinline__ bool is_small(long long n, float to, float from) {
    return n < (1LL << 30) && (float)n / to * from < 1.0e9f;
}

template <typename Index>
static __device__ __forceinline__ void cut(const REAL* __restrict__ x, REAL* __restrict__ patches, long long n,
                                           WINDOW) {
    Index run = (Index)k * channels, line = (Index)width * channels;
    FOR_EACH(number, n) {
        Index t = (Index)number, q = t / run;
        int within = (int)(t - q * run);  // a row of a patch: k pixels in one piece
        int i = (int)(q % k);
        q /= k;
        int column = (int)(q % columns);
        q /= columns;
        int row = (int)(q % rows);
        Index b = q / rows;
        int h = row * s + i - top;
        long long at = (long long)(column * s - left) * channels + within;  // in a line of the image
        bool inside = h >= 0 && h < height && at >= 0 && at < (long long)line;
        patches[t] = inside ? x[(b * height + h) * line + (Index)at] : (REAL)0;
    }
}

template <typename Index>
static __device__ __forceinline__ void add(const REAL* __restrict__ patches, REAL* __restrict__ x, long long n,
                                           WINDOW) {
    FOR_EACH(number, n) {
        Index t = (Index)number, q = t / channels;
        int c = (int)(t - q * channels);
        Index p = q / width;
        int w = (int)(q - p * width) + left;
        Index b = p / height;
        int h = (int)(p - b * height) + top;
        // The patches that cover this pixel, in rising order: the order of the sum is always the same.
        int first_row = h < k ? 0 : (h - k) / s + 1;
        int last_row = min(h / s, rows - 1);
        int first_column = w < k ? 0 : (w - k) / s + 1;
        int last_column = min(w / s, columns - 1);
        REAL sum = 0;
        for (int row = first_row; row <= last_row; ++row)
            for (int column = first_column; column <= last_column; ++column) {
                int i = h - row * s;
                int j = w - column * s;
                Index patch = (b * rows + row) * columns + column;
                sum += patches[((patch * k + i) * k + j) * channels + c];
            }
        x[t] = sum;
    }
}

extern "C" __global__ void cut_patches(const REAL* __restrict__ x, REAL* __restrict__ patches, long long n,
                                       WINDOW) {
    float in_image = (float)height * width * channels, in_patches = (float)rows * columns * k * k * channels;
    if (is_small(n, in_patches, in_image)) cut<unsigned>(x, patches, n, THE_WINDOW);
    else cut<unsigned long long>(x, patches, n, THE_WINDOW);
}

extern "C" __global__ void add_patches(const REAL* __restrict__ patches, REAL* __restrict__ x, long long n,
                                       WINDOW) {
    float in_image = (float)height * width * channels, in_patches = (float)rows * columns * k * k * channels;
    if (is_small(n, in_image, in_patches)) add<unsigned>(patches, x, n, THE_WINDOW);
    else add<unsigned long long>(patches, x, n, THE_WINDOW);
}
