// Chains of elementwise operations on a GPU, each one pass over memory. REAL is float or double.

#define EQUATION static __device__ __forceinline__
#include "equations.h"

#define FOR_EACH(t, n)                                                                                       \
    for (long long t = (long long)blockIdx.x * blockDim.x + threadIdx.x; t < (n);                            \
         t += (long long)gridDim.x * blockDim.x)

// a <- a + b, y = f(a); a is (rows, u), b (u).
extern "C" __global__ void bias_activation(REAL* __restrict__ a, const REAL* __restrict__ b,
                                           REAL* __restrict__ y, long long n, int u, REAL slope) {
    FOR_EACH(t, n) {
        a[t] += b[t % u];
        y[t] = leaky_relu(a[t], slope);
    }
}

// out = f'(a)^power * e; `factor` is slope^power.
extern "C" __global__ void times_derivative(const REAL* __restrict__ a, const REAL* __restrict__ e,
                                            REAL* __restrict__ out, long long n, REAL factor) {
    FOR_EACH(t, n) out[t] = times_f_prime(a[t], e[t], factor);
}

// d = [f^-1(y) - f^-1(y - s v)] / s, s one value a sample of `per_sample` values.
extern "C" __global__ void difference(const REAL* __restrict__ y, const REAL* __restrict__ v,
                                      const REAL* __restrict__ s, REAL* __restrict__ d, long long n,
                                      long long per_sample, REAL slope) {
    FOR_EACH(t, n) {
        REAL size = s[t / per_sample];
        d[t] = crosses_kink(y[t], v[t], size) ? on_two_sides(y[t], v[t], size, slope)
                                              : on_one_side(y[t], v[t], slope);
    }
}

// One step of Adam's clock (t, rate, epsilon): t <- t + 1, and from it rate and epsilon with the bias
// corrections. On the device, so that a step that is replayed counts on.
extern "C" __global__ void adam_clock(double* __restrict__ clock, long long n, double learning_rate,
                                      double beta1, double beta2, double epsilon, int bias_correction) {
    FOR_EACH(i, n) {
        double t = clock[0] + 1;
        double correct1 = bias_correction ? 1 - pow(beta1, t) : 1;
        double correct2 = bias_correction ? 1 - pow(beta2, t) : 1;
        clock[0] = t;
        clock[1] = learning_rate * sqrt(correct2) / correct1;
        clock[2] = epsilon * sqrt(correct2);
    }
}

// Adam on n values, at the rate and epsilon of `clock`.
extern "C" __global__ void adam(REAL* __restrict__ p, const REAL* __restrict__ g, REAL* __restrict__ m,
                                REAL* __restrict__ v, const double* __restrict__ clock, long long n,
                                double beta1, double beta2) {
    REAL rate = (REAL)clock[1], epsilon = (REAL)clock[2];
    REAL rest1 = (REAL)(1 - beta1), rest2 = (REAL)(1 - beta2);
    FOR_EACH(t, n) {
        adam_step(p + t, g[t], m + t, v + t, rate, epsilon, (REAL)beta1, rest1, (REAL)beta2, rest2);
    }
}

// out = (x - shift) * scale, x bytes, shift and scale one value a channel.
extern "C" __global__ void normalise(const unsigned char* __restrict__ x, const REAL* __restrict__ shift,
                                     const REAL* __restrict__ scale, REAL* __restrict__ out, long long n,
                                     int channels) {
    FOR_EACH(t, n) out[t] = normalised(x[t], shift[t % channels], scale[t % channels]);
}

// image[j, i] = block[i, j], of matrices whose rows are `stride` values apart; where both are one block, on the
// diagonal, only j < i: the triangle that a symmetric product (syrk) leaves out.
extern "C" __global__ void mirror(const REAL* block, REAL* image, long long stride, int rows, int columns) {
    long long n = (long long)rows * columns;
    FOR_EACH(t, n) {
        int j = t % columns;
        int i = (int)(t / columns);
        if (block != image || j < i) image[j * stride + i] = block[i * stride + j];
    }
}
