// Chains of elementwise operations, each one pass over memory. REAL is float or double.
//
// What each computes stands, one line of maths a line, in activations.py, optimizers.py and data.py; these
// are the same equations for a GPU. The leaky ReLU has slope 1 above zero and `slope` elsewhere.

#define FOR_EACH(t, n)                                                                                       \
    for (long long t = (long long)blockIdx.x * blockDim.x + threadIdx.x; t < (n);                            \
         t += (long long)gridDim.x * blockDim.x)

// a <- a + b, y = f(a); a is (rows, u), b (u).
extern "C" __global__ void bias_activation(REAL* __restrict__ a, const REAL* __restrict__ b,
                                           REAL* __restrict__ y, long long n, int u, REAL slope) {
    FOR_EACH(t, n) {
        REAL value = a[t] + b[t % u];
        a[t] = value;
        y[t] = value > 0 ? value : slope * value;
    }
}

// out = f'(a)^power * e; `factor` is slope^power.
extern "C" __global__ void times_derivative(const REAL* __restrict__ a, const REAL* __restrict__ e,
                                            REAL* __restrict__ out, long long n, REAL factor) {
    FOR_EACH(t, n) out[t] = a[t] > 0 ? e[t] : factor * e[t];
}

// d = [f^-1(y) - f^-1(y - s v)] / s, s one value a sample of `per_sample` values; s = 0 is the limit.
extern "C" __global__ void difference(const REAL* __restrict__ y, const REAL* __restrict__ v,
                                      const REAL* __restrict__ s, REAL* __restrict__ d, long long n,
                                      long long per_sample, REAL slope) {
    FOR_EACH(t, n) {
        REAL size = s[t / per_sample];
        REAL nudged = y[t] - size * v[t];
        bool above = y[t] > 0;
        REAL one_side = above ? v[t] : v[t] / slope;
        if (above == (nudged > 0)) {
            d[t] = one_side;
        } else {  // y and y - s v have opposite signs: nothing cancels
            REAL inverse_y = above ? y[t] : y[t] / slope;
            REAL inverse_nudged = above ? nudged / slope : nudged;
            d[t] = (inverse_y - inverse_nudged) / size;
        }
    }
}

// One step of Adam's clock (t, rate, epsilon): t <- t + 1, and from it rate and epsilon with the bias corrections. On
// the device, so that a step that is replayed counts on.
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

// Adam: m <- beta1 m + (1 - beta1) g, v <- beta2 v + (1 - beta2) g^2, p <- p - rate m / (sqrt(v) + epsilon), the bias
// corrections in rate and epsilon.
extern "C" __global__ void adam(REAL* __restrict__ p, const REAL* __restrict__ g, REAL* __restrict__ m,
                                REAL* __restrict__ v, const double* __restrict__ clock, long long n, REAL beta1,
                                REAL beta2) {
    REAL rate = (REAL)clock[1];
    REAL epsilon = (REAL)clock[2];
    FOR_EACH(t, n) {
        REAL gradient = g[t];
        REAL first = beta1 * m[t] + (1 - beta1) * gradient;
        REAL second = beta2 * v[t] + (1 - beta2) * gradient * gradient;
        m[t] = first;
        v[t] = second;
        p[t] -= rate * first / (sqrt(second) + epsilon);
    }
}

// out = (x - shift) * scale, x bytes, shift and scale one value a channel.
extern "C" __global__ void normalise(const unsigned char* __restrict__ x, const REAL* __restrict__ shift,
                                     const REAL* __restrict__ scale, REAL* __restrict__ out, long long n,
                                     int channels) {
    FOR_EACH(t, n) {
        int c = t % channels;
        out[t] = ((REAL)x[t] - shift[c]) * scale[c];
    }
}

// G[j, i] = G[i, j] for j > i: the triangle that a symmetric product (syrk) leaves out.
extern "C" __global__ void mirror(REAL* __restrict__ G, long long n, int size) {
    FOR_EACH(t, n) {
        int j = t % size;
        int i = (int)(t / size);
        if (j < i) G[(long long)j * size + i] = G[t];
    }
}
