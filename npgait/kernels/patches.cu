// Patches of images, cut out (im2col) and added back (col2im), both in gather form: each thread makes one value
// of the result and reads what it needs. No atomics, so a result repeats bit for bit.
//
// REAL is float or double. Images are (B, H, W, C); patches (B*rows*columns, k*k*C), in (row, column, channel)
// order. k is the kernel, s the stride, top and left the padding before the first row and column.

extern "C" __global__ void cut_patches(const REAL* __restrict__ x, REAL* __restrict__ patches, long long n,
                                       int height, int width, int channels, int k, int s, int top, int left,
                                       int rows, int columns) {
    long long step = (long long)gridDim.x * blockDim.x;
    for (long long t = (long long)blockIdx.x * blockDim.x + threadIdx.x; t < n; t += step) {
        int c = t % channels;
        long long q = t / channels;
        int j = q % k;
        q /= k;
        int i = q % k;
        q /= k;
        int column = q % columns;
        q /= columns;
        int row = q % rows;
        long long b = q / rows;
        int h = row * s + i - top;
        int w = column * s + j - left;
        bool inside = h >= 0 && h < height && w >= 0 && w < width;
        patches[t] = inside ? x[((b * height + h) * width + w) * channels + c] : (REAL)0;
    }
}

extern "C" __global__ void add_patches(const REAL* __restrict__ patches, REAL* __restrict__ x, long long n,
                                       int height, int width, int channels, int k, int s, int top, int left,
                                       int rows, int columns) {
    long long step = (long long)gridDim.x * blockDim.x;
    for (long long t = (long long)blockIdx.x * blockDim.x + threadIdx.x; t < n; t += step) {
        int c = t % channels;
        long long q = t / channels;
        int w = (int)(q % width) + left;
        q /= width;
        int h = (int)(q % height) + top;
        long long b = q / height;
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
                long long patch = (b * rows + row) * columns + column;
                sum += patches[((patch * k + i) * k + j) * channels + c];
            }
        x[t] = sum;
    }
}
