// The equations of one value, for the kernels of a GPU (*.cu) and the loops of a CPU (loops.c) alike.
//
// Each stands in NumPy in activations.py, optimizers.py or data.py, operation by operation the same. REAL is
// float or double; EQUATION is how whoever includes this declares a function. The leaky ReLU has slope 1
// from zero on and `slope` below.

// y = f(a)
EQUATION REAL leaky_relu(REAL a, REAL slope) { return a >= 0 ? a : slope * a; }

// a = f^-1(y)
EQUATION REAL leaky_relu_inverse(REAL y, REAL slope) { return y >= 0 ? y : y / slope; }

// f'(a)^power * e; `factor` is slope^power
EQUATION REAL times_f_prime(REAL a, REAL e, REAL factor) { return a >= 0 ? e : factor * e; }

// d = [f^-1(y) - f^-1(y - s v)] / s; s = 0 is the limit, but crosses no kink. Where y and y - s v lie on one side of
// the kink that is v over the slope; across it they have opposite signs, and nothing cancels.
EQUATION int crosses_kink(REAL y, REAL v, REAL s) { return (y >= 0) != (y - s * v >= 0); }
EQUATION REAL on_one_side(REAL y, REAL v, REAL slope) { return y >= 0 ? v : v / slope; }
EQUATION REAL on_two_sides(REAL y, REAL v, REAL s, REAL slope) {
    return (leaky_relu_inverse(y, slope) - leaky_relu_inverse(y - s * v, slope)) / s;
}

// Adam: the bias corrections are in rate and epsilon, rest is 1 - beta
EQUATION void adam_step(REAL* p, REAL g, REAL* m, REAL* v, REAL rate, REAL epsilon, REAL beta1, REAL rest1,
                        REAL beta2, REAL rest2) {
    *m = beta1 * *m + rest1 * g;
    *v = beta2 * *v + rest2 * (g * g);
    *p -= rate * (*m / (sqrt(*v) + epsilon));
}

// A byte of an image as the network takes it
EQUATION REAL normalised(unsigned char x, REAL shift, REAL scale) { return ((REAL)x - shift) * scale; }
